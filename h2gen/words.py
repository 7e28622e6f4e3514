"""Words for people: what was probably meant, and text from strangers made safe to show."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'dev'?`` for the closest of the known words, or a full stop where none is close."""
    close = difflib.get_close_matches(word.lower(), [name for name in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else "."


def printable(text: str) -> str:
    """The text in one line without control, format and surrogate characters, which could drive a terminal."""
    flat = " ".join(text.split())
    return "".join(
        char if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn") or char == "\u200d" else "\ufffd"
        for char in flat
    )
