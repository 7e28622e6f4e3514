"""A plan made better on measured pictures: letters change places, what comes out is looked at, the better one stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_REACH = 2
"""Steps that a letter moves at most."""


@dataclass(frozen=True)
class Polished:
    """The best plan found, its measured error, that of the plan it began with, and how many plans were measured."""

    plan: str
    error: float
    before: float
    tried: int


def polish(plan: str, measure: Callable[[str], float], estimate: Callable[[str], float], tries: int) -> Polished:
    """Climb from a plan to a better one of the same letters, and so of the same cost.

    Of all plans in which two letters at most ``_REACH`` steps apart have changed places, the ones that look best
    beforehand are measured first; the first that is better is where it goes on from. It ends where none is better, or
    when so many plans were measured.

    Args:
        plan: where to begin.
        measure: the error of a plan by the pictures that it makes; costly.
        estimate: a guess of that error; cheap. What it holds for no plan at all, an infinite one, is not measured.
        tries: plans measured at most.
    """
    best = before = measure(plan)
    known = {plan}
    tried = 1
    better = True
    while better:
        better = False
        guesses = [(estimate(other), other) for other in neighbours(plan) if other not in known]
        for guess, other in sorted(guesses):
            if tried >= tries or guess == float("inf"):
                break
            known.add(other)
            tried += 1
            error = measure(other)
            if error < best:
                plan, best, better = other, error, True
                break
    return Polished(plan, best, before, tried)


def neighbours(plan: str) -> Iterator[str]:
    """Plans in which two different letters near each other have changed places; the first step stays."""
    for first in range(1, len(plan)):
        for second in range(first + 1, min(len(plan), first + 1 + _REACH)):
            if plan[first] != plan[second]:
                letters = list(plan)
                letters[first], letters[second] = letters[second], letters[first]
                yield "".join(letters)
