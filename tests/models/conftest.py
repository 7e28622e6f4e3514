"""Checkpoints that several tests read; a test that breaks one makes a copy first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

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
