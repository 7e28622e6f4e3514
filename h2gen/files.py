"""Files on the disk: written completely or not at all, identified by their hash, and where the user's own are."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from h2gen.errors import OutputError
from h2gen.wording import printable

LONGEST_NAME = 255
"""Bytes of a file's or a folder's name, in almost all file systems."""


@contextlib.contextmanager
def partial_file(data: bytes, folder: Path, owner: str = "", *, durable: bool = True) -> Iterator[str]:
    """Write a temporary file, complete and synchronised, for the caller to rename or link; removed afterwards.

    Args:
        data: what it holds.
        folder: where the final file belongs; it exists.
        owner: part of the temporary name, by which a killed run's leftovers can be found.
        durable: wait until the disk has it, which takes milliseconds.

    Raises:
        OSError: it cannot be written.
    """
    descriptor, partial = tempfile.mkstemp(prefix=f".h2gen-{owner}", suffix=".partial", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        yield partial
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def nameless_file() -> IO[bytes]:
    """A temporary file for what is too large for memory; gone once it is closed or the process ends, however it ends.

    It is in the folder that ``TMPDIR`` (or ``TEMP``, ``TMP``) names, otherwise in the user's cache folder: many Linux
    systems keep /tmp in memory.

    Raises:
        OSError: it cannot be made.
    """
    if not any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")):
        with contextlib.suppress(OSError):  # no home, or one that cannot be written to
            folder = user_folder("cache")
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=folder)
    return tempfile.TemporaryFile()


def write_whole(path: Path, text: str, owner: str = "") -> None:
    """Write a text file, over an existing one; its folder is created if missing. ``owner`` as in ``partial_file``.

    Raises:
        OSError: it cannot be written; an existing file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(text.encode(), path.parent, owner) as partial:
        os.replace(partial, path)


def expanded(name: str) -> Path:
    """A path that may begin with a user's home folder: ``~/NAME``. One that no file can have stays as it is."""
    try:
        return Path(os.path.expanduser(name))
    except ValueError:  # a null byte in the name of a user
        return Path(name)


def user_folder(kind: str) -> Path:
    """The user's folder for h2gen's ``config``, ``data`` or ``cache``; it need not exist.

    Raises:
        OSError: the user has no home folder.
    """
    import platformdirs

    try:
        path = Path(getattr(platformdirs, f"user_{kind}_dir")("h2gen", appauthor=False))
    except RuntimeError:
        path = Path()
    if not path.is_absolute():
        raise OSError(errno.ENOENT, "there is no home folder; set HOME")
    return path


def user_files(kind: str, name: str) -> list[Path]:
    """The .toml files in a folder of the user's; none if it does not exist or cannot be read."""
    try:
        return sorted((user_folder(kind) / name).glob("*.toml"))
    except OSError:
        return []


def check_file(path: Path, added: int = 0) -> None:
    """Check that a file could be written, as far as its name and its folder go, without creating anything.

    Args:
        path: the file.
        added: bytes that may still be added to its name.

    Raises:
        OutputError: it could not.
    """
    if "\0" in path.name:
        raise OutputError(f"The file name {_short(path.name)} holds a NUL; give another.")
    if len(os.fsencode(path.name)) + added > LONGEST_NAME:
        raise OutputError(f"The file name {_short(path.name)} is too long; give one of {LONGEST_NAME - added} bytes.")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Check that files could be written to a folder, without creating anything.

    Raises:
        OutputError: they could not.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(folder)
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        existing = folder
        while not os.path.lexists(existing) and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            what = "a broken link" if existing.is_symlink() and not existing.exists() else "not a folder"
            raise NotADirectoryError(errno.ENOTDIR, f"{str(existing)!r} is {what}")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:  # a ValueError is a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"Cannot write to the folder {_short(str(folder))}: {reason}; give another.") from error


def _short(path: str) -> str:
    text = printable(path)
    return repr(text if len(text) <= LONGEST_NAME else f"{text[:40]}...")


def sha256(data: bytes) -> str:
    """The hash as 64 hex digits."""
    import hashlib  # not for --help

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
