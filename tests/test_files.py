"""Files are written completely, or the old content is kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from h2gen.files import nameless_file, partial_file, sha256, sha256_of, user_folder, write_whole


def test_a_file_is_written_over_the_one_before_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.toml"
    for text in ("one\n", "zwölf\n"):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(path.parent) == ["a.toml"]


def test_where_it_cannot_be_written_the_file_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.toml"
    write_whole(path, "one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "two")
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.toml"]


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_it_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "a")
    (tmp_path / "b").write_text("a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_an_unfinished_file_says_whose_it_is_and_goes(tmp_path: Path) -> None:
    with partial_file(b"data", tmp_path, "run-1-") as partial:
        assert Path(partial).name.startswith(".h2gen-run-1-") and Path(partial).read_bytes() == b"data"
    assert os.listdir(tmp_path) == []


def test_a_file_without_a_name_is_in_the_cache_folder_unless_the_user_names_another(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))  # nothing can be written there
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    with nameless_file() as file:
        file.write(b"data")
        file.seek(0)
        assert file.read() == b"data"
    assert os.listdir(user_folder("cache")) == []
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(OSError, match="No such file"):
        nameless_file()


def test_without_a_cache_folder_it_is_in_the_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("TMPDIR", raising=False)
    with nameless_file() as file:
        assert file.write(b"data") == 4


def test_a_hash_is_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == sha256(b"abc")
    assert sha256(b"abc").startswith("ba7816bf")
    assert sha256_of(tmp_path / "gone") is None
