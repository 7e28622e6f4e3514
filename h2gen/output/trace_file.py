"""``--trace``: a picture's decisions as JSON Lines: a header, one object per forward pass, a summary."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from h2gen._version import __version__
from h2gen.cache.summary import Summary
from h2gen.cache.trace import StepRecord
from h2gen.errors import OutputError
from h2gen.files import check_folder


class TraceFile:
    """Writes each step as it happens, so that a stopped run leaves its steps.

    A full disk ends the file but not the picture: ``error`` then says why.

    Args:
        path: of a new file.
        settings: for the header.
        overwrite: replace an existing file, once there is a step to write.

    Raises:
        OutputError: the file already exists, or cannot be written.
    """

    error: str | None = None

    def __init__(self, path: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab" if overwrite else "xb", buffering=0)
        except OSError as error:
            raise _cannot(path, error.strerror or str(error)) from error
        self._first = {"h2gen": __version__, "settings": dict(settings)}
        self._header: int | None = None
        if not self._written:
            self._begin()

    @property
    def _written(self) -> int:
        """Bytes in the file; 0 if it is a pipe or a device."""
        return self._file.tell() if self._file.seekable() else 0

    def _begin(self) -> None:
        """Write the header, in place of what an existing file holds."""
        self._header = 0
        if self._written:
            self._file.truncate(0)
        self._write(self._first)
        self._header = self._written

    @staticmethod
    def check(path: Path, overwrite: bool = False) -> None:
        """Check that the file could be written, without creating it.

        Raises:
            OutputError: it could not.
        """
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:
            raise _cannot(path, getattr(error, "strerror", None) or str(error)) from error
        else:
            if os.path.isdir(path) or not overwrite:
                raise _cannot(path, "it is a folder" if os.path.isdir(path) else "it already exists")
            if not os.access(path, os.W_OK):
                raise _cannot(path, "permission denied")
        if not os.path.isdir(path.parent):
            check_folder(path.parent)  # is created with the trace, as that of pictures is
        elif not os.access(path.parent, os.W_OK | os.X_OK):
            raise _cannot(path, "permission denied")

    def on_step(self, record: StepRecord) -> None:
        self._write(record.to_json())

    def restart(self) -> None:
        """Drop the steps written so far: the picture is made again from its first step."""
        if self.error is None and self._header is not None:
            self._file.truncate(self._header)
            self._file.seek(self._header)

    def close(self, summary: Summary | None) -> None:
        """End the file, with the summary if the run was finished."""
        if summary is not None:
            self._write({"summary": summary.to_json()})
        self._file.close()

    def _write(self, item: dict[str, Any]) -> None:
        if self._header is None:
            self._begin()
        if self.error is None:
            try:
                self._file.write(json.dumps(item, allow_nan=False).encode() + b"\n")
            except OSError as error:
                self.error = error.strerror or str(error)


def _cannot(path: Path, reason: str) -> OutputError:
    return OutputError(f"Cannot write the trace {str(path)!r}: {reason}; give another with --trace.")
