"""Finds the best plans for a model and solver from recorded runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from h2gen.evaluation.tune.forecast_errors import Matrix, displacements
from h2gen.evaluation.tune.recording import RecordedRun
from h2gen.evaluation.tune.shortest_path import BestPlans, best_plans, total_error


class Planner:
    """The best plans for a model with a solver.

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

        self._kinds = {
            "S": (mean(lambda r: displacements(r.velocity, passes, farthest=math.inf, corrected=corrected)), 0),
            "R": (mean(lambda r: displacements(r.reused, passes, gains=r.gains)), 2),
            "D": (mean(lambda r: displacements(r.detail, passes, gains=r.gains)), first + 1),
        }
        if self._steps * self._full > 4000:  # the tables grow with the budget: with only S it is counted in steps
            del self._kinds["D"], self._kinds["R"]
        self._best: BestPlans = best_plans(self._kinds, self._full)

    def plan(self, share: float, reference: int) -> str | None:
        """The plan with the least error for a share of the blocks of an uncached run.

        Args:
            share: the budget.
            reference: passes of the uncached run.

        Returns:
            None if no plan runs that few blocks.
        """
        budget = share * reference * self._full
        return None if budget < self._best.floor else self._best.within(budget).plan

    def error(self, plan: str) -> float:
        """The error that the shortest path minimises, for any plan with its letters."""
        return total_error(plan, self._kinds)
