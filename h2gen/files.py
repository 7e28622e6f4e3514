"""Files on the disk: written completely or not at all, and identified by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def partial_file(data: bytes, folder: Path, owner: str = "") -> Iterator[str]:
    """Write a temporary file, complete and synchronised, for the caller to rename or link; removed afterwards.

    Args:
        data: what it holds.
        folder: where the final file belongs; it exists.
        owner: part of the temporary name, by which a killed run's leftovers can be found.

    Raises:
        OSError: it cannot be written.
    """
    descriptor, partial = tempfile.mkstemp(prefix=f".h2gen-{owner}", suffix=".partial", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        yield partial
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def write_whole(path: Path, text: str, owner: str = "") -> None:
    """Write a text file, over an existing one; its folder is created if missing. ``owner`` as in ``partial_file``.

    Raises:
        OSError: it cannot be written; an existing file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(text.encode(), path.parent, owner) as partial:
        os.replace(partial, path)


def sha256(data: bytes) -> str:
    """The hash as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str | None:
    """The hash of a file's contents; None if it cannot be read."""
    try:
        return sha256(path.read_bytes())
    except OSError:
        return None


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
