"""Words for people: what was probably meant, and text from strangers made safe to show."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Any

_LONGEST = 40
"""Characters of a stranger's value that a message has room for."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'dev'?`` for the closest of the known words, or a full stop where none is close."""
    close = difflib.get_close_matches(word.lower(), [name for name in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else "."


def shown(value: Any) -> str:
    """A value as a message shows it: text in quotes, and nothing of it that is long or could drive a terminal."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    if isinstance(value, int) and value.bit_length() > 10_000:
        return "a number of very many digits"  # which Python refuses to write
    text = printable(str(value))
    cut = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return repr(cut) if isinstance(value, str) else cut


def printable(text: str) -> str:
    """The text in one line without control, format and surrogate characters, which could drive a terminal."""
    flat = " ".join(text.split())
    return "".join(
        char if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn") or char == "\u200d" else "\ufffd"
        for char in flat
    )
