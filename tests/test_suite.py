"""The suite itself: each package has fast tests, and its modules can be imported on any system."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import ROOMS, pytest_collection_modifyitems

TESTS = Path(__file__).parent
POSIX_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}


def item(room: str, *marks: str) -> Any:
    """The relevant part of a collected test."""
    return SimpleNamespace(path=TESTS / room / "test_it.py", get_closest_marker=marks.__contains__)


def collect(items: list[Any], *given: str) -> None:
    config: Any = SimpleNamespace(args=list(given) or ["tests"], getini=lambda name: ["tests"])
    pytest_collection_modifyitems(config, items)


def test_a_package_without_a_fast_test_stops_a_run_of_all_tests() -> None:
    assert {"cache", "cli", "families", "settings"} <= ROOMS
    others = [item(room) for room in ROOMS - {"models", "output"}]
    slow = [item("models", "slow"), item("output", "slow")]
    with pytest.raises(pytest.UsageError, match=r"for h2gen/models, h2gen/output\.$"):
        collect([*others, *slow])
    collect([*others, *slow], "tests/models")
    collect([*others, *slow, item("models"), item("output", "posix")])


def test_no_module_imports_at_its_top_what_only_posix_has() -> None:
    for path in TESTS.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & POSIX_ONLY, path
