"""What a batch has made: an append-only journal next to the pictures, readable after a kill at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from h2gen.errors import OutputError
from h2gen.files import sha256_of

PREFIX = "h2gen-batch"


class Journal:
    """The journal of the runs in one folder. Use as a context manager: the part is locked while it is open.

    Each line is a JSON object with ``event`` and the job's ``id``: ``writing`` (a picture is about to get the name
    ``file``; its bytes have this ``sha256``), ``made`` (it has that name, and its size is ``bytes``) or ``failed``
    (``error`` says why). Lines are only appended, and synced one by one. A line that a kill cut off is not valid JSON
    and is skipped; a picture that got its name just before the kill is recognised by its hash. A file belongs to the
    job that claimed it last.

    Args:
        folder: where the pictures are; it exists.
        part: tells apart runs that may work in the folder at the same time, such as ``3of16``; "" is the whole run.

    Raises:
        OutputError: another run of this part is working in the folder, or the journal cannot be read or written.
    """

    def __init__(self, folder: Path, part: str = "") -> None:
        suffix = f"-{part}" if part else ""
        self.folder = folder
        self.path = folder / f"{PREFIX}{suffix}.jsonl"
        self.failures = folder / f"h2gen-failures{suffix}.jsonl"
        self._lock = FileLock(folder / f".{PREFIX}{suffix}.lock")

    def __enter__(self) -> Journal:
        try:
            self._lock.acquire(blocking=False)
            self._file = self.path.open("ab", buffering=0)
            if not _ends_a_line(self.path):
                self._file.write(b"\n")  # after a line that a kill cut off
        except Timeout as error:
            raise OutputError(
                f"Another run is working in {str(self.folder)!r}; wait for it, or give another folder with --out."
            ) from error
        except OSError as error:
            self._lock.release()
            raise OutputError(f"Cannot write {str(self.path)!r}: {error.strerror or error}.") from error
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._lock.release()

    def made(self) -> dict[str, Path]:
        """The picture of each finished job that still exists, by job id, whichever part recorded it."""
        claims: dict[str, list[tuple[str, str | int | None]]] = {}  # file: jobs, with its hash or size
        for path in sorted(self.folder.glob(f"{PREFIX}*.jsonl")):
            for line in read_lines(path):
                job, file, digest = line.get("id"), line.get("file"), line.get("sha256")
                if isinstance(job, str) and isinstance(file, str) and file == Path(file).name:
                    if line.get("event") == "made":
                        size = line.get("bytes")
                        claims.setdefault(file, []).append((job, size if isinstance(size, int) else None))
                    elif line.get("event") == "writing" and isinstance(digest, str):
                        claims.setdefault(file, []).append((job, digest))
        done = {}
        try:
            entries = list(os.scandir(self.folder))
        except OSError as error:
            raise OutputError(f"Cannot read the folder {str(self.folder)!r}: {error.strerror or error}.") from error
        for entry in entries:
            for job, known in reversed(claims.get(entry.name, [])):
                if _is(entry, known):
                    done[job] = self.folder / entry.name
                    break
        return done

    def writing(self, job: str, file: Path, digest: str, sidecar: str | None = None) -> None:
        """A picture is about to get its name. ``sidecar`` is the hash of its sidecar, which gets its name first."""
        beside = {} if sidecar is None else {"sidecar": sidecar}
        self._add({"event": "writing", "id": job, "file": file.name, "sha256": digest, **beside})

    def clear_orphans(self) -> None:
        """Remove sidecars whose picture was never named because of a kill."""
        for line in read_lines(self.path):
            file, digest = line.get("file"), line.get("sidecar")
            if isinstance(file, str) and file == Path(file).name and isinstance(digest, str):
                picture = self.folder / file
                beside = picture.with_suffix(".toml")
                if not picture.exists() and sha256_of(beside) == digest:
                    beside.unlink()

    def finished(self, job: str, file: Path, facts: Mapping[str, Any]) -> None:
        """A picture has its name and is on the disk."""
        self._add({"event": "made", "id": job, "file": file.name, **facts})

    def failed(self, job: str, error: str) -> None:
        """A job failed and is not tried again."""
        self._add({"event": "failed", "id": job, "error": error})

    def _add(self, line: Mapping[str, Any]) -> None:
        append_line(self._file, json.dumps(line, allow_nan=False))


def append_line(file: FileIO, line: str) -> None:
    """Append a line to a file; it is on the disk when this returns.

    Raises:
        OSError: it cannot be written.
    """
    data = memoryview(line.encode() + b"\n")
    while data:  # a nearly full disk writes part of it, and reports the error only at the next write
        data = data[file.write(data) :]
    os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a JSON Lines file. Other lines are skipped; a missing file has none.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            for raw in file:
                try:
                    line = json.loads(raw)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict):
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"Cannot read {str(path)!r}: {error.strerror or error}.") from error


def _is(entry: os.DirEntry[str], known: str | int | None) -> bool:
    """Whether a file matches its record: the hash if it was about to get its name, or else the size."""
    if isinstance(known, str):
        return sha256_of(Path(entry.path)) == known
    return known is None or entry.stat().st_size == known


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
