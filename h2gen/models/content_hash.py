"""The identity of a checkpoint, whatever its name: a hash over the files that its pipeline is loaded from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from h2gen.errors import ModelError
from h2gen.files import sha256, user_folder, write_whole
from h2gen.models.catalogue import Checkpoint
from h2gen.models.files import components, index_of, read_index, weight_files
from h2gen.models.hub import TEXT, download
from h2gen.models.part_files import TRANSFORMER, by_component, parts_of

HASH = "content-hash.txt"
"""The file next to the bundled checkpoint that holds its ``content_hash``."""
_BLOCK = 2**20


def content_hash(checkpoint: Checkpoint) -> str:
    """A checkpoint's identity: 64 hex digits, a hash over the names and contents of all files that are loaded.

    Reading a checkpoint takes about one second per gigabyte, so the hash of each file is stored in the user's cache
    folder, and is valid while the file's size and modification time stay the same. In the cache of the hub large files
    already have their hash as their name.

    Raises:
        ModelError: files are missing or damaged.
        Exception: one of huggingface_hub's, if the checkpoint has to be downloaded and cannot be.
    """
    remembered = _Remembered()
    lines = [f"{name} {remembered.sha256(path)}\n" for name, path in sorted(_files(checkpoint))]
    remembered.write()
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """The hash of one file's contents, 64 hex digits. That of a large file is remembered, as those of checkpoints are.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    key = (os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ino)
    if key not in _IN_THIS_PROCESS:
        if state.st_size < _LARGE:
            _IN_THIS_PROCESS[key] = sha256(path.read_bytes())
        else:
            remembered = _Remembered()
            _IN_THIS_PROCESS[key] = remembered.sha256(path)
            remembered.write()
    return _IN_THIS_PROCESS[key]


def files_hash(paths: Sequence[Path]) -> str:
    """The hash of a model's weights: of its only file, or of the names and hashes of several, 64 hex digits.

    Raises:
        OSError: one of them cannot be read.
    """
    if len(paths) == 1:
        return file_hash(paths[0])
    lines = [f"{path.parent.name}/{path.name} {file_hash(path)}\n" for path in sorted(paths)]
    return sha256("".join(lines).encode())


_LARGE = 2**25
"""Bytes from which on reading a file takes longer than reading and writing all remembered hashes."""
_IN_THIS_PROCESS: dict[tuple[str, int, int, int], str] = {}


def check_bundled(checkpoint: Checkpoint) -> None:
    """Check that the bundled checkpoint is unchanged.

    Raises:
        ModelError: one of its files is missing or was changed.
        OSError: the file with its hash is missing.
    """
    shipped = (Path(checkpoint.location) / HASH).read_text("ascii").strip()
    if content_hash(replace(checkpoint, parts=())) != shipped:
        raise ModelError("The bundled model is damaged; reinstall h2gen, or choose another --model.")


class Identity:
    """A checkpoint's ``content_hash``, computed in a thread, since hashing mostly waits for the disk."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._hash = ""
        self._error: Exception | None = None
        # A daemon, so that the program can exit without waiting for it.
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Wait for the hash. Raises what ``content_hash`` raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._hash

    def _compute(self) -> None:
        try:
            self._hash = content_hash(self._checkpoint)
        except Exception as error:  # noqa: BLE001 - raised by ``result``
            self._error = error


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """The files that are loaded, each with a name that does not depend on where the checkpoint is stored."""
    parts, source = parts_of(checkpoint), checkpoint.base or checkpoint
    folder = download(str(source.location), parts=parts) if source.kind == "hub" else Path(source.location)
    index = read_index(folder)
    given = by_component(parts, index)
    seen: set[Path] = set()
    for name, part in sorted(given.items(), key=lambda each: each[1].kind != TRANSFORMER):
        if part.path.is_dir():
            yield from _part_files(name, part.path)
        elif part.path not in seen:  # a whole checkpoint is hashed once
            seen.add(part.path)
            yield f"{name}-file", part.path
    yield index_of(folder).name, index_of(folder)
    for name in components(index):
        if name not in given or not given[name].path.is_dir():
            yield from _part_files(name, folder / name, weights=name not in given)


def _part_files(name: str, part: Path, weights: bool = True) -> Iterator[tuple[str, Path]]:
    for path in part.iterdir() if part.is_dir() else ():
        # An index of shards adds nothing to the weights, or belongs to a precision that is not loaded.
        if path.suffix[1:] in TEXT and path.is_file() and ".safetensors.index." not in path.name:
            yield f"{name}/{path.name}", path
    if weights and (part / "config.json").is_file():
        for path in weight_files(part):
            yield f"{name}/{path.name}", path


class _Remembered:
    """Stored hashes of files, valid for the same path, size, time and inode. They only save time."""

    def __init__(self) -> None:
        self._new: dict[str, list[int | str]] = {}
        try:
            known = json.loads(self._path().read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            known = {}
        self._known: dict[str, list[int | str]] = known if isinstance(known, dict) else {}

    @staticmethod
    def _path() -> Path:
        return user_folder("cache") / "sha256.json"

    def sha256(self, path: Path) -> str:
        real = path.resolve()
        if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", real.name):
            return real.name  # the hub's cache: blobs/SHA256
        state = real.stat()
        key = [state.st_size, state.st_mtime_ns, state.st_ino]
        entry = self._known.get(str(real))
        if isinstance(entry, list) and entry[:3] == key and len(entry) == 4 and isinstance(entry[3], str):
            return entry[3]
        digest = hashlib.sha256()
        with real.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        self._new[str(real)] = [*key, digest.hexdigest()]
        return digest.hexdigest()

    def write(self) -> None:
        """Store the hashes that were computed, for the next run."""
        if not self._new:
            return
        with contextlib.suppress(OSError):
            write_whole(self._path(), json.dumps({**self._known, **self._new}))
