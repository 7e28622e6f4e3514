"""What every test needs: no network, no user's own settings, one bundled model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own: nobody's configuration, presets or environment reaches it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / ".local" / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    for name in [name for name in os.environ if name.startswith("H2GEN_")]:
        monkeypatch.delenv(name)
    return home


@pytest.fixture(scope="session")
def tiny() -> Iterator[object]:
    """The bundled model, loaded once."""
    import h2gen

    yield h2gen.load("tiny")
