"""Files and folders that prompts name arrive on a machine that lacks them, and are read where it has them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from h2gen.errors import UsageError
from h2gen.models.controlnet import find_controlnet, hash_controlnet
from h2gen.models.redux import find_redux, hash_redux
from h2gen.settings.inputs import InputFile
from h2gen.settings.values import Settings
from tests import small

ray_files = pytest.importorskip("h2gen.batches.ray_files", reason="needs Ray", exc_type=ImportError)


class Store:
    """Ray's store: what is put there is known by its number."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.fetched = 0

    def put(self, piece: bytes) -> int:
        self.pieces.append(piece)
        return len(self.pieces) - 1

    def get(self, number: int) -> bytes:
        self.fetched += 1
        return self.pieces[number]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    found = Store()
    monkeypatch.setattr(ray_files, "ray", SimpleNamespace(put=found.put, get=found.get))
    monkeypatch.setattr(ray_files, "_PIECE", 1000)
    (tmp_path / "there").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there"))
    return found


def picture(folder: Path) -> tuple[Path, str]:
    Image.effect_noise((64, 64), 90).save(folder / "start.png")
    return folder / "start.png", ray_files.BY_NAME["image"].files.hashed(folder / "start.png")


def net(folder: Path) -> tuple[Path, str]:
    small.controlnet().save_pretrained(folder / "net", max_shard_size="100KB")
    (folder / "net" / "notes.bin").write_bytes(b"not read")
    assert len([*(folder / "net").glob("*.safetensors")]) > 1
    return folder / "net", hash_controlnet(folder / "net")


def redux(folder: Path) -> tuple[Path, str]:
    small.redux_prior().save_pretrained(folder / "redux")
    return folder / "redux", hash_redux(folder / "redux")


def named(name: str, path: Path, sha256: str) -> Settings:
    """A picture's settings with a file."""
    more = {"redux": (InputFile("a.png", "0" * 64, 1.0, path="held"),)} if name == "redux_model" else {}
    file = InputFile(path.name, sha256, path=path)
    return Settings("a cat", 1, 64, 64, 4, **{name: (file,)}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "make", "find"),
    [("image", picture, None), ("controlnet", net, find_controlnet), ("redux_model", redux, find_redux)],
)
def test_what_a_prompt_names_arrives_whole_on_a_machine_without_it(
    name: str, make: Callable[[Path], tuple[Path, str]], find: Any, tmp_path: Path, store: Store
) -> None:
    path, sha256 = make(tmp_path)
    settings = named(name, path, sha256)
    shipping, placing = ray_files.Shipping(), ray_files.Placing()
    files = shipping.files_of([settings, settings])
    assert len(store.pieces) > 1 and max(map(len, store.pieces)) == 1000
    assert b"not read" not in store.pieces

    (here,) = getattr(placing.placed(settings, files), name)
    assert here.path == path and not store.fetched, "this machine has it: nothing is sent"

    shutil.move(path, tmp_path / "moved")
    for _ in range(2):
        (there,) = getattr(placing.placed(settings, shipping.files_of([settings])), name)
        assert there.path.is_relative_to(tmp_path / "there") and there.path.name == path.name
        assert ray_files.BY_NAME[name].files.hashed(there.path) == sha256
        assert find is None or find(str(there.path))[0] == there.path
    assert store.fetched == len(store.pieces), "each piece is sent once"
    assert (tmp_path / "there").stat().st_mode and next((tmp_path / "there").iterdir()).stat().st_mode & 0o777 == 0o700
    placing.clear()
    assert not [*(tmp_path / "there").iterdir()]


def test_a_file_that_is_gone_or_was_changed_is_one_line(tmp_path: Path, store: Store) -> None:
    path, sha256 = picture(tmp_path)
    settings = named("image", path, sha256)
    path.write_bytes(b"another picture")
    files = ray_files.Shipping().files_of([settings])
    with pytest.raises(UsageError, match=r"^'start\.png' has changed since the batch was started; start it again\.$"):
        ray_files.Placing().placed(settings, files)
    path.unlink()
    with pytest.raises(UsageError, match=r"^'start\.png' has been moved since the batch was started"):
        ray_files.Placing().placed(settings, ray_files.Shipping().files_of([settings]))


def test_a_picture_in_memory_is_left_as_it_is(store: Store) -> None:
    settings = Settings("a cat", 1, 64, 64, 4, image=(InputFile("a PIL image", "0" * 64, 0.5, path="a PIL image"),))
    files = ray_files.Shipping().files_of([settings])
    assert not files and ray_files.Placing().placed(settings, files) is settings
