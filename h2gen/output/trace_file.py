"""A run's decisions as JSON Lines: a header, an object a forward pass, a summary."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from h2gen._version import __version__
from h2gen.cache.trace import StepRecord, Summary
from h2gen.errors import OutputError


class TraceFile:
    """Writes while the run goes on, so that a run that is stopped leaves the steps it made.

    A disk that fills up ends the file, and not the picture: ``error`` then says why.

    Raises:
        OutputError: the file exists already, or cannot be written.
    """

    error: str | None = None

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise _cannot(path, error.strerror or str(error)) from error
        self._write({"h2gen": __version__, "settings": dict(settings)})

    @staticmethod
    def check(path: Path) -> None:
        """Find out before a model is loaded whether the file could be written, and leave nothing behind."""
        if path.exists():
            raise _cannot(path, "it is a folder" if path.is_dir() else "it exists already")
        if not path.parent.is_dir():
            raise _cannot(path, "its folder does not exist")
        if not os.access(path.parent, os.W_OK):
            raise _cannot(path, "permission denied")

    def on_step(self, record: StepRecord) -> None:
        self._write(record.to_json())

    def close(self, summary: Summary | None) -> None:
        """End the file; with the summary, where the run came to its end."""
        if summary is not None:
            self._write({"summary": summary.to_json()})
        self._file.close()

    def _write(self, item: dict[str, Any]) -> None:
        if self.error is None:
            try:
                self._file.write(json.dumps(item, allow_nan=False).encode() + b"\n")
            except OSError as error:
                self.error = error.strerror or str(error)


def _cannot(path: Path, reason: str) -> OutputError:
    return OutputError(f"Cannot write the trace {str(path)!r}: {reason}; give another with --trace.")
