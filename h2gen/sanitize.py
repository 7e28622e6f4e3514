"""Sanitizing values from untrusted files: only what JSON, TOML and UTF-8 can all hold is kept."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 64
"""Levels of lists and tables inside each other."""
SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON can spell but UTF-8 cannot hold."""


def sanitize(value: Any, levels: int = DEEPEST) -> Any:
    """The value as text, numbers, booleans, lists and tables with text as keys. It never fails.

    A null in a table is left out. Everything else that cannot be stored becomes text: other nulls, dates, numbers
    that are not finite or take more than 64 bits, and anything deeper than ``levels``.
    """
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, (Mapping, list, tuple)):
        if not levels:
            return "..."
        if isinstance(value, Mapping):
            return {sanitize(str(key)): sanitize(each, levels - 1) for key, each in value.items() if each is not None}
        return [sanitize(each, levels - 1) for each in value]
    if is_number(value):
        return value
    if isinstance(value, int) and value.bit_length() > 2000:
        return hex(value)  # Python does not write thousands of decimal digits
    return "null" if value is None else str(value)


def is_number(value: Any) -> bool:
    """Whether TOML can hold it as a boolean or a number: finite, and of at most 64 bits if whole."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and value.bit_length() < 64


def is_deep(value: Any, levels: int) -> bool:
    """Whether lists and tables are nested in more than this many levels."""
    if not isinstance(value, (dict, list)):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return not levels or any(is_deep(each, levels - 1) for each in inside)
