"""Improves a plan by local search: swaps nearby letters and keeps a swap if the measured images get closer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_REACH = 2
"""Steps that a letter moves, at most."""


@dataclass(frozen=True)
class PolishedPlan:
    """The best plan found, its measured error, the error of the original plan, and the number of plans measured."""

    plan: str
    error: float
    before: float
    tried: int


def polish(plan: str, measure: Callable[[str], float], estimate: Callable[[str], float], tries: int) -> PolishedPlan:
    """Hill-climb from a plan to a better one with the same letters, and so with the same cost.

    Of all plans in which two letters at most ``_REACH`` steps apart are swapped, those with the lowest estimate are
    measured first. The first one that is better becomes the new starting point. The search ends when no plan is better,
    or after ``tries`` measured plans.

    Args:
        plan: the starting point.
        measure: the error of a plan from the images that it makes; slow.
        estimate: a guess of that error; fast. Plans with an infinite estimate are not measured.
        tries: plans measured, at most.
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
    return PolishedPlan(plan, best, before, tried)


def neighbours(plan: str) -> Iterator[str]:
    """Plans in which two different letters near each other are swapped; the first step stays."""
    for first in range(1, len(plan)):
        for second in range(first + 1, min(len(plan), first + 1 + _REACH)):
            if plan[first] != plan[second]:
                letters = list(plan)
                letters[first], letters[second] = letters[second], letters[first]
                yield "".join(letters)
