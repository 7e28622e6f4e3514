"""Read TOML files that come from strangers: of bounded size, and with one clear reason when they cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 64 * 1024
"""Bytes; far more than any preset or configuration needs."""


def read_toml(path: Path) -> dict[str, Any]:
    """The file's contents.

    Raises:
        ValueError: it cannot be read, is too large or is not TOML; the message is the reason alone, in one line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(error.strerror or "it cannot be read") from error
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST // 1024} KiB")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "it is nested too deeply"
        raise ValueError(f"it is not valid TOML: {reason}") from error
