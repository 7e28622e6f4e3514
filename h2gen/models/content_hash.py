"""Which checkpoint it is, whatever it is called: a hash over the files that its pipeline is loaded from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from h2gen.errors import ModelError
from h2gen.models.catalogue import Checkpoint
from h2gen.models.files import INDEX, components, read_index, weight_files
from h2gen.models.hub import TEXT, download

HASH = "content-hash.txt"
"""Beside the bundled checkpoint: what its ``content_hash`` must be."""
_BLOCK = 2**20


def content_hash(checkpoint: Checkpoint) -> str:
    """A checkpoint's identity: 64 hex digits over the names and contents of all files that are loaded.

    Reading a checkpoint takes about a second a gigabyte, so each file's hash is remembered in the user's cache
    folder for as long as the file's size and time stay as they are; the hub's cache names large files by it anyway.

    Raises:
        ModelError: files are missing or damaged.
        Exception: huggingface_hub's own, where the checkpoint is still to be fetched and cannot be.
    """
    remembered = _Remembered()
    lines = [f"{name} {remembered.sha256(path)}\n" for name, path in sorted(_files(checkpoint))]
    remembered.write()
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_bundled(checkpoint: Checkpoint) -> None:
    """Check that the bundled checkpoint is the one that was shipped.

    Raises:
        ModelError: a file of it is missing, or not what it was.
        OSError: the hash itself is missing.
    """
    shipped = (Path(checkpoint.location) / HASH).read_text("ascii").strip()
    if content_hash(checkpoint) != shipped:
        raise ModelError("The bundled model is not as it was shipped; install h2gen again, or choose another --model.")


class Identity:
    """A checkpoint's ``content_hash``, computed beside whatever else goes on: hashing waits for the disk, and lets go
    of the interpreter meanwhile."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._hash = ""
        self._error: Exception | None = None
        # A daemon: a program that is stopped does not wait for it.
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def result(self) -> str:
        """The hash, once it is there; raises what ``content_hash`` raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._hash

    def _compute(self) -> None:
        try:
            self._hash = content_hash(self._checkpoint)
        except Exception as error:  # noqa: BLE001 - handed on
            self._error = error


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """What is loaded, by a name that is the same wherever the checkpoint lies."""
    if checkpoint.base is not None:
        yield "transformer-file", Path(checkpoint.location)
        yield from _folder_files(checkpoint.base, without="transformer")
    else:
        yield from _folder_files(checkpoint)


def _folder_files(checkpoint: Checkpoint, without: str | None = None) -> Iterator[tuple[str, Path]]:
    hub = checkpoint.kind == "hub"
    folder = download(str(checkpoint.location), without=without) if hub else Path(checkpoint.location)
    yield INDEX, folder / INDEX
    for name in components(read_index(folder)):
        part = folder / name
        for path in part.iterdir() if part.is_dir() else ():
            # An index of shards, or one of a precision that is not loaded, says nothing that the weights do not.
            if path.suffix[1:] in TEXT and path.is_file() and not path.name.endswith(".index.json"):
                yield f"{name}/{path.name}", path
        if name != without and (part / "config.json").is_file():
            for path in weight_files(part):
                yield f"{name}/{path.name}", path


class _Remembered:
    """Hashes of files by path, size, time and inode. A damaged or unwritable memory only costs time."""

    def __init__(self) -> None:
        self._path = Path(platformdirs.user_cache_dir("h2gen", appauthor=False)) / "sha256.json"
        self._new: dict[str, list[int | str]] = {}
        try:
            known = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            known = {}
        self._known: dict[str, list[int | str]] = known if isinstance(known, dict) else {}

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
        """Remember what was read, for the next run."""
        if not self._new:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(prefix=".sha256-", dir=self._path.parent)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({**self._known, **self._new}, file)
            os.replace(partial, self._path)
