"""Saving: safe names, whole files, nothing overwritten, and a finished picture is never lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from h2gen.errors import OutputError, RunError
from h2gen.output.names import safe_name
from h2gen.output.save import Target, encode, keep, slug, target_of
from tests.locked import locked

PICTURE = Image.new("RGB", (8, 8), "red")


def save(picture: Image.Image, target: Target, prompt: str, seed: int) -> Path:
    """Write a picture under a name made from its prompt and seed."""
    return keep(encode(picture, target.format), target.folder, target.name(prompt, seed), target.ending)


@pytest.mark.parametrize(("format", "kind"), [(None, "PNG"), ("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_a_picture_is_written_in_its_format(tmp_path: Path, format: str | None, kind: str) -> None:
    path = save(PICTURE, target_of(str(tmp_path), format), "A Cat!", 7)
    assert path.stem == "a-cat-7"
    with Image.open(path) as image:
        assert image.format == kind
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("name", "kind"), [("mine.jpeg", "JPEG"), ("MINE.JPG", "JPEG"), ("mine.WebP", "WEBP"), ("a.b.PNG", "PNG")]
)
def test_a_named_file_keeps_its_name_and_decides_its_format(tmp_path: Path, name: str, kind: str) -> None:
    target = target_of(str(tmp_path / "deep" / name), None)
    assert save(PICTURE, target, "a cat", 7) == tmp_path / "deep" / name
    with Image.open(tmp_path / "deep" / name) as image:
        assert image.format == kind
    again = save(PICTURE, target, "a cat", 7)
    assert again.name == f"{Path(name).stem}-2{Path(name).suffix}"


def test_a_file_is_replaced_with_its_sidecar_when_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("old")
    (tmp_path / "a.toml").write_text("old")
    for sidecar in ("new", None):  # the second time it is a file of the user's own
        assert keep(b"data", tmp_path, "a", "png", sidecar=sidecar, overwrite=True) == tmp_path / "a.png"
    assert [(tmp_path / name).read_text() for name in ("a.png", "a.toml")] == ["data", "new"]
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.toml"]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A naïve Café, 2½ cats!", "a-naive-cafe-212-cats"),
        ("猫", "猫"),
        ("a cat, 猫 ネコ", "a-cat-猫-ネコ"),
        ("か\u3099っこう", "がっこう"),
        ("Кошка на окне", "кошка-на-окне"),
        ("बिल्ली", "बिल्ली"),
        ("قطة، نائمة", "قطة-نائمة"),
        ("\u202egnp.\x1b\u200b猫/../x", "gnp-猫-x"),
        ("❤️ 🐱", "picture"),
        ("猫" * 100, "猫" * 33),
    ],
)
def test_a_prompt_in_any_script_names_its_file(prompt: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slug(prompt) == name
    monkeypatch.setattr("h2gen.output.names.os.fsencode", lambda text: text.encode("ascii"))
    assert slug(prompt).isascii() and slug("a 猫") == "a"


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    target = target_of(str(tmp_path), None)
    paths = [save(PICTURE, target, "a cat", 7).name for _ in range(3)]
    assert paths == ["a-cat-7.png", "a-cat-7-2.png", "a-cat-7-3.png"]


def test_two_processes_that_want_the_same_name_both_keep_their_picture(tmp_path: Path) -> None:
    code = (
        "from tests.output.test_save import PICTURE, save, target_of\nimport sys\n"
        "[save(PICTURE, target_of(sys.argv[1], None), 'a cat', 7) for _ in range(20)]"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(list(tmp_path.glob("*.png"))) == 40
    assert len(os.listdir(tmp_path)) == 40


@given(st.text())
@example("NUL")  # which Windows takes for a device, but not with a number behind it
def test_any_prompt_makes_a_name_that_every_file_system_takes(prompt: str) -> None:
    name = slug(prompt)
    assert 0 < len(name) <= 48 and len(name.encode()) <= 100
    assert safe_name(f"{name}-7") == f"{name}-7"
    assert name.strip("-") == name


def test_without_hard_links_a_picture_is_still_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    names = [save(PICTURE, target_of(str(tmp_path), None), "a cat", 7).name for _ in range(2)]
    assert names == ["a-cat-7.png", "a-cat-7-2.png"]
    assert len(os.listdir(tmp_path)) == 2


def test_a_picture_that_cannot_be_written_is_put_where_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    out, rescue = tmp_path / "out", tmp_path / "rescue"
    rescue.mkdir()
    target = target_of(str(out), None)
    out.write_text("in the way")  # the folder became a file while the picture was made
    monkeypatch.setattr(tempfile, "tempdir", str(rescue))
    with pytest.raises(RunError, match="It is safe in") as caught:
        save(PICTURE, target, "a cat", 7)
    assert str(rescue) in str(caught.value)
    assert [path.name for path in rescue.iterdir()] == ["h2gen-a-cat-7.png"]
    monkeypatch.setattr(tempfile, "tempdir", str(out))  # nothing can be written there either
    with pytest.raises(RunError, match="It is safe in") as caught:
        save(PICTURE, target, "a cat", 7)
    assert (own_home / "h2gen-a-cat-7.png").exists() and str(own_home) in str(caught.value)


@pytest.mark.parametrize(
    ("out", "format", "words"),
    [
        ("cat.gif", None, "Cannot write pictures as .gif files"),
        ("cat.png", "jpg", "contradict"),
        (".", "bmp", "format is 'bmp'; choose png, jpg or webp"),
        (".", "mp4", "format is 'mp4', and this is a picture; choose png, jpg or webp"),
        ("cat.mp4", None, "Cannot write pictures as .mp4 files"),
        ("file/below", None, "is not a folder"),
        ("x" * 250 + ".png", None, "too long"),
        ("x" * 300, None, "too long"),
        ("new/" + "ä" * 130, None, "too long"),
        ("", None, "out is empty"),
        ("x" * 226 + ".png", None, "too long"),  # a seed and a number may be added
        ("a\0b", None, "null byte"),
        ("a\0b.png", None, "holds a NUL"),
        ("~nobody-of-this-name/x", None, "no such home folder"),
        ("dangling", None, "a broken link"),
        ("dangling/x.png", None, "a broken link"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, format: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputError, match=words):
        target_of(out, format)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


@pytest.mark.posix
@pytest.mark.parametrize("name", ["inner", "x.png", "."])
def test_a_folder_that_may_not_be_searched_is_refused(tmp_path: Path, name: str) -> None:
    with locked(tmp_path) as folder, pytest.raises(OutputError, match="Permission denied; give another"):
        target_of(str(folder / name), None)


def test_a_folder_that_is_missing_is_made_only_when_there_is_a_picture(tmp_path: Path) -> None:
    target = target_of(str(tmp_path / "new" / "folder"), None)
    assert os.listdir(tmp_path) == []
    assert save(PICTURE, target, "a cat", 1).exists()


@pytest.mark.posix
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        folder = Path("/proc/self")  # root may write anywhere except here
    else:
        folder = tmp_path
        folder.chmod(0o500)
    with pytest.raises(OutputError, match="Cannot write to the folder"):
        target_of(str(folder), None)
