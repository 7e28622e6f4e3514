"""Files that prompts name, such as pictures and ControlNets: sent to the machines of a cluster that lack them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from ray.exceptions import RayError

from h2gen.errors import UsageError
from h2gen.settings.inputs import FileRule, InputFile
from h2gen.settings.table import BY_NAME
from h2gen.settings.values import FILES, Settings

_PIECE = 2**26
"""Bytes that go into Ray's store as one object: a file may be larger than the store."""
_BEGIN = "h2gen-ray-"


class Sent(NamedTuple):
    """What a prompt names, in Ray's store.

    Args:
        name: of a file, without its folder, or of a folder, which is that of a model.
        parts: of each file that is read of it, the path within the folder, empty if it is a single file, and references
            to its pieces.
    """

    name: str
    parts: tuple[tuple[str, tuple[Any, ...]], ...]


Files = Mapping[str, Sent]
"""What tasks need, by the hash of its contents."""


class Shipping:
    """On the machine that starts the batch: puts each file into Ray's store once."""

    def __init__(self) -> None:
        self._sent: dict[str, Sent] = {}

    @property
    def is_used(self) -> bool:
        return bool(self._sent)

    def files_of(self, settings: Iterable[Settings]) -> Files:
        """The files that pictures need, except those that can no longer be read or do not fit into Ray's store."""
        needed = {}
        for name, file in (pair for each in settings for pair in _files_in(each)):
            with contextlib.suppress(OSError, UsageError, RayError):
                if file.sha256 not in self._sent:
                    self._sent[file.sha256] = _sent(BY_NAME[name].files, Path(str(file.path)))
                needed[file.sha256] = self._sent[file.sha256]
        return needed


def _files_in(settings: Settings) -> Iterator[tuple[str, InputFile]]:
    """The files on this machine that a picture is made from, each with the setting's name."""
    for name in FILES:
        for file in getattr(settings, name):
            if isinstance(file.path, Path):  # not a picture that is in memory
                yield name, file


def _sent(rule: FileRule, path: Path) -> Sent:
    files = rule.read_of(path)
    return Sent(path.name, tuple(("" if file == path else str(file.relative_to(path)), _put(file)) for file in files))


def _put(path: Path) -> tuple[Any, ...]:
    with path.open("rb") as file:
        return tuple(ray.put(piece) for piece in iter(lambda: file.read(_PIECE), b""))


class Placing:
    """On a worker's machine: uses the files that it already has, and writes the others to a temporary folder."""

    def __init__(self) -> None:
        _remove_leftovers()
        self._folder: Path | None = None
        self._written: dict[str, Path] = {}

    def placed(self, settings: Settings, files: Files) -> Settings:
        """The settings with each file's path on this machine, with the contents that it had when the batch started.

        Raises:
            UsageError: a file could not be sent, or has changed since the batch was started.
            OSError: it cannot be written here.
        """
        paths = {file.sha256: self._path(BY_NAME[name].files, file, files) for name, file in _files_in(settings)}
        moved: dict[str, Any] = {
            name: tuple(replace(file, path=paths.get(file.sha256, file.path)) for file in getattr(settings, name))
            for name in FILES
        }
        return replace(settings, **moved) if paths else settings

    def clear(self) -> None:
        """Remove what was written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, rule: FileRule, file: InputFile, files: Files) -> Path:
        written = self._written.get(file.sha256)
        for path in (written, file.path, None if written else _known(rule, file.name)):
            if isinstance(path, Path) and _has(rule, path, file.sha256):
                return path
        if file.sha256 not in files:
            raise UsageError(f"{file.name!r} has been moved since the batch was started, or is too large to send.")
        path = self._write(file.sha256, files[file.sha256])
        if not _has(rule, path, file.sha256):
            raise UsageError(f"{file.name!r} has changed since the batch was started; start it again.")
        self._written[file.sha256] = path
        return path

    def _write(self, sha256: str, sent: Sent) -> Path:
        if self._folder is None:
            # Of a name that nobody else could have taken before, and only for this user.
            self._folder = Path(tempfile.mkdtemp(prefix=f"{_BEGIN}{os.getpid()}-"))
        whole = self._folder / sha256 / sent.name
        for name, pieces in sent.parts:
            path = whole / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                for piece in pieces:
                    out.write(ray.get(piece))
        return whole


def _remove_leftovers() -> None:
    """Remove the folders of processes that were killed."""
    for each in Path(tempfile.gettempdir()).glob(f"{_BEGIN}*"):
        process = each.name.removeprefix(_BEGIN).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(each, ignore_errors=True)  # neither a link nor another user's


def _known(rule: FileRule, name: str) -> Path | str | None:
    try:
        return rule.known(name)
    except (UsageError, OSError):  # it cannot be read, or is damaged: as if it were not here
        return None


def _has(rule: FileRule, path: Path, sha256: str) -> bool:
    try:
        return path.exists() and rule.hashed(path) == sha256
    except (UsageError, OSError):
        return False
