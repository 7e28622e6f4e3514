"""How often a method is timed: as often as the user asked, or until two runs agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from h2gen.evaluation.rivals import same_time

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method

LEAST, MOST = 2, 3
"""Timed runs per image by default: two, and a third if those differ."""


def least(method: Method, repeat: int | None) -> int:
    """Timed runs of a method on each case, at least.

    Args:
        method: the image of very many steps (``truth``) is made only once: its time does not matter.
        repeat: the number that the user gave, or None.
    """
    return 1 if method.kind == "truth" else repeat or LEAST


def wants_another(method: Method, seconds: Sequence[float], repeat: int | None) -> bool:
    """Whether a method has to be timed once more on a case.

    Args:
        method, repeat: as in ``least``.
        seconds: its runs so far.
    """
    runs = len(seconds)
    if repeat is None and method.kind != "truth" and LEAST <= runs < MOST:
        return not same_time(min(seconds), max(seconds))
    return runs < least(method, repeat)
