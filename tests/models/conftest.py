"""Checkpoints that several tests read; a test that breaks one makes a copy first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

from tests import small


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "flux"
    small.flux_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def klein_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "klein"
    small.flux2_klein_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def flux2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "flux2"
    small.flux2_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def broken(flux_folder: Path, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the Flux folder, to be broken."""

    def copy() -> Path:
        return Path(shutil.copytree(flux_folder, tmp_path / "broken"))

    return copy


@pytest.fixture
def narrow_flux1(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers converts FLUX.1's original names only for a width of 3072; use the small model's instead."""
    convert = convert_flux_transformer_checkpoint_to_diffusers
    consts = tuple(32 if const == 3072 else const for const in convert.__code__.co_consts)
    monkeypatch.setattr(convert, "__code__", convert.__code__.replace(co_consts=consts))
