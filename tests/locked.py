"""A folder that cannot be read, whatever user runs the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """A new folder inside, which nobody but root may search; root becomes somebody else meanwhile."""
    inside = folder / "locked"
    inside.mkdir(mode=0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield inside
    finally:
        if root:
            os.seteuid(0)
        inside.chmod(0o700)
