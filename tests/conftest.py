"""What every test needs: no network, no user settings, one bundled model; and which tests run where."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

# A busy machine is not a failure, and the same examples each time do not fail by chance.
hypothesis.settings.register_profile("h2gen", deadline=None, derandomize=True)
hypothesis.settings.register_profile("anew", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("h2gen")

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from threads

ROOMS = frozenset(path.parent.name for path in (Path(__file__).parents[1] / "h2gen").glob("*/__init__.py"))
"""The packages of h2gen; the tests of each are in the folder of the same name."""


TRAINER = ("inflect", "resvg_py", "sentencepiece")
"""Packages of the ``train`` extra that the tests of the trainer import."""

collect_ignore = [] if all(map(find_spec, TRAINER)) else ["tools"]


def pytest_report_header() -> str | None:
    return 'tests/tools is left out: its packages are in the extra "train"' if collect_ignore else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if os.name != "posix" and item.get_closest_marker("posix"):
            item.add_marker(pytest.mark.skip(reason="needs POSIX"))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    if config.args == config.getini("testpaths"):  # the whole suite
        missing = rooms_without_fast_tests(items)
        if missing:
            raise pytest.UsageError(f"No fast test in tests/ for h2gen/{', h2gen/'.join(missing)}.")


def pytest_collection_finish() -> None:
    """Exclude the objects of imported libraries from garbage collection, which many tests request at every step."""
    gc.collect()
    gc.freeze()


@cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def rooms_without_fast_tests(items: list[pytest.Item]) -> list[str]:
    """The packages of h2gen without any test in ``-m "not slow"``."""
    left_out = ("slow", "gpu", "browser")
    fast = {item.path.relative_to(Path(__file__).parent).parts[0] for item in items
            if not any(map(item.get_closest_marker, left_out))}  # fmt: skip
    return sorted(ROOMS - fast)


@pytest.fixture(scope="session", autouse=True)
def quick_workers() -> Iterator[None]:
    """Fork the worker processes of batches from a server that has imported torch and diffusers already.

    ``Forked`` programs and their workers come from it too. Where a test starts a new program, its workers are started
    as they are for a user.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        yield
        return
    multiprocessing.set_forkserver_preload(["tests.preloaded"])
    get_context = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            multiprocessing,
            "get_context",
            lambda method=None: get_context("forkserver" if method == "spawn" else method),
        )
        yield


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder for the test, without any user's configuration, presets or environment."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / ".local" / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    for name in [name for name in os.environ if name.startswith("H2GEN_")]:
        monkeypatch.delenv(name)
    return home


@pytest.fixture(scope="module", autouse=True)
def own_attention() -> Iterator[None]:
    """diffusers keeps the attention backend that was set last, for all models of the process."""
    yield
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    if dispatch is not None:
        default = dispatch.AttentionBackendName(dispatch.DIFFUSERS_ATTN_BACKEND)
        dispatch._AttentionBackendRegistry.set_active_backend(default)


@pytest.fixture(scope="session")
def tiny() -> Iterator[object]:
    """The bundled model, loaded once."""
    import h2gen

    yield h2gen.load("tiny")
