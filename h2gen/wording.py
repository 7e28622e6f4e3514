"""Wording of messages: suggestions, untrusted values made safe to show, and scores."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 40
"""Characters of an untrusted value in a message."""


def times(number: int) -> str:
    """``once``, ``twice``, ``3 times``."""
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def plural(number: int, noun: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str], word: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``; or with another word before the last."""
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'dev'?`` with the closest known word, or a full stop if none is close."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else "."


def shown(value: Any) -> str:
    """A value as messages show it: text in quotes, cut to a short length, without control characters."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    if isinstance(value, int) and value.bit_length() > 10_000:
        return "a number with very many digits"  # which Python does not write
    text = printable(str(value))
    if isinstance(value, float):
        text = text.removesuffix(".0")  # as it was probably typed
    cut = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return repr(cut) if isinstance(value, str) else cut


def printable(text: str) -> str:
    """The text in one line, without control, format and surrogate characters, which could affect a terminal."""
    flat = " ".join(text.split())
    return "".join(
        char if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn") or char == "\u200d" else "\ufffd"
        for char in flat
    )


def below_one(value: float, digits: int = 3) -> str:
    """A score of at most 1, such as an SSIM: ``0.971``; with more digits rather than rounded up to 1."""
    while digits < 9 and value < 1 <= float(f"{value:.{digits}f}"):
        digits += 1
    return f"{value:.{digits}f}"


def count(parameters: int) -> str:
    """A number of parameters: ``11.9 B``."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def gigabytes(size: int) -> str:
    """Bytes: ``23.8 GB``, or ``22 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
