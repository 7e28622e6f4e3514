"""Reading TOML files: the user's own, and untrusted ones, which have limits on size and nesting."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from h2gen.sanitize import DEEPEST, is_deep, is_number

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 64 * 1024
"""Bytes; far more than any preset or configuration needs."""

_TOO_DEEP = "it is nested too deeply"
_TOO_LONG = "a whole number in it takes more than 64 bits"
_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*"""
# tomllib's time grows with the square of the number of dots in a key: 64 KiB of them take 15 seconds.
_LONG_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*(?:{_PART}\.[ \t]*){{100}}", re.MULTILINE)


def read_toml(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The contents of one of the user's own files.

    Raises:
        ValueError: it cannot be read, is larger than ``largest`` bytes or is not TOML; the message is only
            the reason, in one line.
    """
    return _parse(_read(path, largest))


def read_untrusted_toml(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The contents of an untrusted file: as ``read_toml``, with limits.

    Raises:
        ValueError: as ``read_toml``; or tables are nested too deeply, or a whole number takes more than 64 bits.
    """
    text = _read(path, largest)
    if _LONG_KEY.search(text):
        raise ValueError(_TOO_DEEP)
    found = _parse(text)
    if is_deep(found, DEEPEST):
        raise ValueError(_TOO_DEEP)
    if _holds_long_number(found):
        raise ValueError(_TOO_LONG)
    return found


def _read(path: Path, largest: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise ValueError(error.strerror or "it cannot be read") from error
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest // 1024} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is not valid TOML: {_TOO_DEEP}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not valid TOML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # from Python itself, which does not read numbers with thousands of digits
        raise ValueError(_TOO_LONG) from error


def _holds_long_number(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(_holds_long_number(each) for each in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not is_number(value)
