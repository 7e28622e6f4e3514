"""Values from strangers' files made plain: what JSON, TOML and UTF-8 can all hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 64
"""Levels of lists and tables within each other."""
SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of a character that JSON can spell and UTF-8 cannot hold."""


def plain(value: Any, levels: int = DEEPEST) -> Any:
    """The value as text, numbers, truth values, lists and tables whose keys are text. It never fails.

    A null in a table is left out. What else cannot be held becomes text: another null, a date, a number that is not
    finite or takes more than 64 bits, and what lies deeper than ``levels``.
    """
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, (Mapping, list, tuple)):
        if not levels:
            return "..."
        if isinstance(value, Mapping):
            return {plain(str(key)): plain(each, levels - 1) for key, each in value.items() if each is not None}
        return [plain(each, levels - 1) for each in value]
    if is_number(value):
        return value
    if isinstance(value, int) and value.bit_length() > 2000:
        return hex(value)  # Python refuses to write thousands of decimal digits
    return "null" if value is None else str(value)


def is_number(value: Any) -> bool:
    """Whether it is a truth value or a number as TOML can hold it: finite, and of 64 bits where it is whole."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and value.bit_length() < 64


def is_deep(value: Any, levels: int) -> bool:
    """Whether lists and tables lie within each other in more than so many levels."""
    if not isinstance(value, (dict, list)):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return not levels or any(is_deep(each, levels - 1) for each in inside)
