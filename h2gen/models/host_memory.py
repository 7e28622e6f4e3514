"""Main memory: how much of it is free, and the most that this process has used. Loads no torch."""

from __future__ import annotations

import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def free_host_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes of main memory that this process may still use: of the machine, or of its container if that has less.

    Args:
        cgroup: where Linux has the limits of a container.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return min(free, max(0, limit - used + int(stat["inactive_file"])))  # what was read can be read again
    except (OSError, ValueError, KeyError):  # no container, or "max"
        return free


def peak_host_memory() -> int | None:
    """The most bytes of main memory that this process has used at a time; None if the system does not say."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
