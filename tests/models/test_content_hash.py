"""A checkpoint's identity: the same in any folder and under any name, and different once a byte changes."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from h2gen.errors import ModelError
from h2gen.models.catalogue import BUNDLED, resolve
from h2gen.models.content_hash import Identity, check_bundled, content_hash
from h2gen.models.load import load_pipeline
from tests.checkpoints import edit_json, save_single


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def test_the_same_files_elsewhere_are_the_same_checkpoint(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLED, tmp_path / "another name"))
    (copy / "README.md").write_text("not loaded")
    assert content_hash(resolve(str(copy))) == content_hash(resolve("tiny"))


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "transformer/config.json",
        "tokenizer/tokenizer.json",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_one_byte_makes_it_another(tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(BUNDLED, tmp_path / "copy"))
    before = content_hash(resolve(str(copy)))
    path = copy / file
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1] + (b" \n"[data[-1:] == b" " :][:1] if file.endswith("json") else bytes([data[-1] ^ 1])))
    assert content_hash(resolve(str(copy))) != before


def test_a_bundled_model_that_was_changed_is_not_loaded(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLED, tmp_path / "copy"))
    checkpoint = replace(resolve("tiny"), location=copy)
    check_bundled(checkpoint)
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match="The bundled model is damaged; reinstall h2gen"):
        load_pipeline(checkpoint)


def test_a_single_file_and_its_base_are_one_checkpoint(flux_folder: Path, tmp_path: Path) -> None:
    from tests import small

    one = save_single(small.flux_transformer(0), tmp_path / "one.safetensors")
    two = save_single(small.flux_transformer(1), tmp_path / "two.safetensors")
    hashes = {content_hash(resolve(str(path), str(flux_folder))) for path in (one, two)} | {
        content_hash(resolve(str(flux_folder)))
    }
    assert len(hashes) == 3


def test_hashes_are_remembered_until_a_file_changes(own_cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLED, tmp_path / "copy"))
    first = content_hash(resolve(str(copy)))
    memory = own_cache / "h2gen" / "sha256.json"
    weights = next(copy.glob("vae/*.safetensors")).resolve()
    remembered = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert remembered in memory.read_text()
    memory.write_text(memory.read_text().replace(remembered, "0" * 64))
    assert content_hash(resolve(str(copy))) != first  # it was not read again
    os.utime(weights, (1, 1))
    assert content_hash(resolve(str(copy))) == first  # and now it was


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 3}', "\x00"])
def test_a_damaged_memory_is_no_obstacle(own_cache: Path, damage: str) -> None:
    first = content_hash(resolve("tiny"))
    (own_cache / "h2gen" / "sha256.json").write_text(damage)
    assert content_hash(resolve("tiny")) == first


@pytest.mark.posix
def test_a_file_that_the_hub_named_by_its_hash_is_not_read(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLED, tmp_path / "copy"))
    path = next(copy.glob("vae/*.safetensors"))
    before = content_hash(resolve(str(copy)))
    blob = tmp_path / hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(blob)
    path.symlink_to(blob)
    assert content_hash(resolve(str(copy))) == before


def test_in_the_background_it_is_the_same_and_errors_come_out(tmp_path: Path) -> None:
    assert Identity(resolve("tiny")).result() == content_hash(resolve("tiny"))
    copy = Path(shutil.copytree(BUNDLED, tmp_path / "copy"))
    edit_json(copy / "model_index.json", _class_name="Nonsense")
    with pytest.raises(ModelError, match="Nonsense"):
        Identity(resolve(str(copy))).result()
