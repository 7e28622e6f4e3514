"""What a search has measured so far, on the disk: a search that was killed finds it there and goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from h2gen.batches.journal import append_line, read_lines
from h2gen.errors import OutputError


class MeasurementLog:
    """Values by their keys, each written down as soon as it is known. Use as a context manager: it is locked meanwhile.

    The search itself is deterministic, so that it takes the same way again and asks for the same values.

    Args:
        path: JSON Lines: a header, then an object with ``key`` and ``value`` a line. What a kill cut off is passed
            over.
        header: what the values hold for; a notebook of another header is begun anew.

    Raises:
        OutputError: somebody else is writing in it, or it cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._header = json.loads(json.dumps({"notebook": dict(header)}))
        self._lock = FileLock(path.with_suffix(".lock"))
        self._values: dict[str, Any] = {}
        self.recalled = 0

    def __enter__(self) -> MeasurementLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            lines = list(read_lines(self.path))
            if lines and lines[0] == self._header:
                self._values = {line["key"]: line["value"] for line in lines[1:] if {"key", "value"} <= line.keys()}
                self._file = self.path.open("ab", buffering=0)
                self._file.write(b"\n")  # the line that a kill cut off stays as it is; ours begins a new one
            else:
                self._file = self.path.open("wb", buffering=0)
                self._write(self._header)
        except Timeout as error:
            raise OutputError(f"Another run is tuning the same model and writes {str(self.path)!r}; wait.") from error
        except OSError as error:
            self._lock.release()
            raise OutputError(f"Cannot write {str(self.path)!r}: {error.strerror or error}.") from error
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._lock.release()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The value that was written down, or what ``make`` returns, written down; plain JSON."""
        if key in self._values:
            self.recalled += 1
        else:
            value = make()
            self._write({"key": key, "value": value})
            self._values[key] = value
        return self._values[key]

    def recall(self, key: str) -> Any:
        """The value that was written down; None where there is none."""
        return self._values.get(key)

    def remove(self) -> None:
        """Throw it away: what it was for is done."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _write(self, line: Mapping[str, Any]) -> None:
        append_line(self._file, json.dumps(line))
