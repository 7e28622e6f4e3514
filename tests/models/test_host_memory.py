"""Free main memory is that of the container, if there is one with less; and the peak of a process only grows."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from h2gen.models.host_memory import free_host_memory, peak_host_memory


def container(folder: Path, limit: str, used: int = 3000, cached: int = 1000) -> Path:
    for name, text in {
        "memory.max": limit,
        "memory.current": str(used),
        "memory.stat": f"anon 5\ninactive_file {cached}",
    }.items():
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(("limit", "free"), [("10000", 8000), ("2000", 0), ("max", None)])
def test_a_containers_limit_counts_without_what_can_be_read_again(limit: str, free: int | None, tmp_path: Path) -> None:
    found = free_host_memory(container(tmp_path, limit))
    assert found == free if free is not None else found > 10**6


def test_without_a_container_it_is_the_machines(tmp_path: Path) -> None:
    assert 0 < free_host_memory(tmp_path) <= psutil.virtual_memory().total


def test_the_peak_includes_what_was_freed_again() -> None:
    peak = peak_host_memory()
    assert peak is not None and peak >= psutil.Process().memory_info().rss * 0.9
    block = bytearray(b"x" * (peak + 10**7))
    size = len(block)
    del block
    after = peak_host_memory()
    assert after is not None and after >= size
