"""Finds the best plans for a model and solver from recorded runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from h2gen.evaluation.tune.forecast_errors import Matrix, displacements
from h2gen.evaluation.tune.recording import RecordedRun
from h2gen.evaluation.tune.shortest_path import best_plans, total_error

POWERS = (1, 2)
"""Powers to which the cost of a run of skipped steps is raised. Higher powers avoid single bad runs: MeanCache (arXiv
2601.19961) found 4 to 5 best for its own forecast; here 2 and 4 give nearly the same plans."""

Kinds = Mapping[str, tuple[Matrix, int]]


@dataclass(frozen=True)
class Planned:
    """A plan, and the function that it minimises: the error of any plan with the same letters."""

    plan: str
    error: Callable[[str], float]


class Planner:
    """The best plans for a model with a solver.

    The cost of skipping a run of steps is exact only for a forecast that is linear in the computed velocities, and only
    if the other steps stay as they were recorded. The learned forecast lies between the last velocity and the line, and
    models differ in how much of an error they make up for. So there are several costs: the displacement of the picture
    if the last velocity is held, the remainder of that after the correction, and the sum of both for the line. Each has
    a best plan, and measured pictures decide between these.

    Args:
        runs: recorded runs of several images with the same sigmas; errors are means over them.
        blocks: number of blocks in the structure stage and in the detail stage.
        corrected: whether the solver lets the cache correct for skipped steps.
    """

    def __init__(self, runs: Sequence[RecordedRun], blocks: Sequence[int], *, corrected: bool) -> None:
        first, second = blocks
        self._full = first + second
        passes = runs[0].passes
        self._steps = len(passes)

        def mean(of: Callable[[RecordedRun], Matrix]) -> Matrix:
            errors: Matrix = np.mean([of(run) for run in runs], axis=0)
            return errors

        def skipped(order: int, corrected: bool) -> Matrix:
            return mean(
                lambda run: displacements(run.velocity, passes, order=order, farthest=math.inf, corrected=corrected)
            )

        held = skipped(0, False)
        costs = [(held, 1)]
        if corrected:
            left = skipped(0, True) - held
            left[:, :, -1] = held[:, :, -1]  # nothing corrects what is skipped at the end
            costs = [(cost, power) for cost in (held, left) for power in POWERS]
        self._kinds: list[Kinds] = [{"S": (cost**power, 0)} for cost, power in costs]
        mixed = {
            "S": (skipped(1, corrected), 0),
            "R": (mean(lambda r: displacements(r.reused, passes, gains=r.gains)), 2),
            "D": (mean(lambda r: displacements(r.detail, passes, gains=r.gains)), first + 1),
        }
        if self._steps * self._full > 4000:  # the tables grow with the budget: with only S it is counted in steps
            del mixed["D"], mixed["R"]
        self._kinds.append(mixed)
        self._best = [best_plans(kinds, self._full) for kinds in self._kinds]

    def plans(self, share: float, reference: int) -> Iterator[Planned]:
        """The plan with the least total of each cost, for a share of the blocks of an uncached run; without duplicates.

        Args:
            share: the budget.
            reference: passes of the uncached run.
        """
        budget, seen = share * reference * self._full, set[str]()
        for kinds, best in zip(self._kinds, self._best, strict=True):
            if budget < best.floor:
                continue
            plan = best.within(budget).plan
            if plan not in seen:
                seen.add(plan)
                yield Planned(plan, partial(_error, kinds=kinds))


def _error(plan: str, kinds: Kinds) -> float:
    """The error of a plan; infinite if it has a letter without a cost."""
    return total_error(plan, kinds) if {*plan} <= {"F", *kinds} else math.inf


def thinned(planned: Planned, steps: int) -> str:
    """A plan with some of its full steps skipped, those that its error misses least; empty if too few would be left."""
    plan = planned.plan
    for _ in range(steps):
        places = [place for place, letter in enumerate(plan) if letter == "F" and place > 0]
        if len(places) < 2:
            return ""
        plan = min((f"{plan[:place]}S{plan[place + 1 :]}" for place in places), key=planned.error)
    return plan
