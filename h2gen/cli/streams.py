"""The standard streams: what they cannot encode is replaced, and a failed write does not end a run."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any

_ERRORS = "h2gen"
"""The name of ``_spelled`` among Python's error handlers."""
_ASCII = {"≥": ">=", "≤": "<=", "·": "-", "…": ".", **dict.fromkeys("█━╸╺", "#")}
_ASCII |= dict.fromkeys(map(chr, range(0x2800, 0x2900)), "*")  # the spinner
"""Replacements for characters of our tables that an encoding lacks; equally wide, so that columns stay aligned."""


class Output:
    """The program's stdout and stderr.

    Args:
        stdout: None if it is not one of Python's own streams, as in tests.
    """

    def __init__(self, stdout: _Raw | None) -> None:
        self._stdout = stdout

    def lost(self) -> str | None:
        """Why something could not be written to stdout; None if everything was, and empty if the reader closed it."""
        sys.stdout.flush()
        error = None if self._stdout is None else self._stdout.error
        if error is None:
            return None
        return "" if error.errno == errno.EPIPE else error.strerror or str(error)


def make_safe() -> Output:
    """Make the standard streams safe to use, whatever the program was started with.

    A path is still printed to stdout as it is, whatever its bytes. A closed stream is replaced, so that no file opened
    later gets its descriptor; stdin, if it is closed or cannot be read, by an empty one.
    """
    codecs.register_error(_ERRORS, _spelled)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
    try:
        os.read(0, 0)
        readable = sys.stdin is not None
    except OSError:
        readable = False
    if not readable:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
    stdout = _safe("stdout", 1)
    _safe("stderr", 2)
    return Output(stdout)


def _safe(name: str, descriptor: int) -> _Raw | None:
    """Replace a stream; returns the new one's bytes, or None if it is not one of Python's own."""
    stream: Any = getattr(sys, name)
    if stream is None:
        raw = _Raw(io.FileIO(descriptor, "w", closefd=False), OSError(errno.EBADF, "it is closed"))
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", _ERRORS))
        return raw
    below = getattr(stream, "buffer", None)
    if not isinstance(below, (io.BufferedWriter, io.RawIOBase)):
        return None
    stream.flush()
    raw = _Raw(getattr(below, "raw", below))
    buffer: Any = io.BufferedWriter(raw) if hasattr(below, "raw") else raw  # ``python -u`` has no buffer
    lines, through = stream.line_buffering, stream.write_through
    new = io.TextIOWrapper(buffer, stream.encoding, _ERRORS, line_buffering=lines, write_through=through)
    setattr(sys, name, new)
    return raw


class _Raw(io.RawIOBase):
    """The bytes of a stream. After some that cannot be written all others are dropped.

    Args:
        raw: where they go.
        closed: what writing fails with.
    """

    error: OSError | None = None
    """Why something could not be written."""

    def __init__(self, raw: Any, closed: OSError | None = None) -> None:
        self._raw, self._closed = raw, closed

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, data: Any) -> int:
        left = memoryview(data) if self.error is None else memoryview(b"")
        try:
            while left:
                if self._closed is not None:
                    raise self._closed
                written = self._raw.write(left)
                if written is None:  # a pipe that does not block, and is full
                    select.select([], [self._raw], [])
                else:
                    left = left[written:]
        except OSError as error:
            self.error = error
        return len(data)


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler: bytes of a path as they are, characters of our own in ASCII, all others escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, start = error.object, error.start
    char = text[start]
    if "\udc80" <= char <= "\udcff":
        return bytes([ord(char) - 0xDC00]), start + 1
    if char in _ASCII:
        wider = len(_ASCII[char]) > 1 and text[start + 1 : start + 2] == " "
        return _ASCII[char], start + 1 + wider
    one = UnicodeEncodeError(error.encoding, text, start, start + 1, error.reason)
    return codecs.backslashreplace_errors(one)
