"""Finds the plan with the least total error for every budget: a shortest path over pairs of computed steps.

A plan is a string with one letter per pass. Its computed steps are ``F``; all steps between two of them are of one
kind: ``S`` skipped, ``R`` both stages reused, ``D`` detail reused. The error of a run of such steps depends on the last
two computed steps and on where the run ends, and the total is the sum over the runs. So the state is that pair, the
budget is one more axis, and the result is the true minimum of the sum, not a heuristic.

What is exact and what is not: with S the error of each run is exact, as long as the steps around it are as they were
recorded; the plan is optimal if the displacement of one run is neither amplified nor undone later. With R and D the
errors are estimates (see ``recording``), a D step does not count as one of the two computed steps, and plans that mix
kinds within one run are not considered; ``polish`` may still find them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from h2gen.errors import SettingError
from h2gen.evaluation.tune.forecast_errors import Matrix


@dataclass(frozen=True)
class BestPlan:
    """A plan, the number of blocks that it runs over all steps, and its total error."""

    plan: str
    blocks: int
    error: float


@dataclass(frozen=True)
class BestPlans:
    """The best plan for every budget. Budgets are counted in units of ``unit`` blocks."""

    unit: int
    _full: int = field(repr=False)
    _kinds: Mapping[str, tuple[Matrix, int]] = field(repr=False)
    _rest: Matrix = field(repr=False)

    @property
    def _steps(self) -> int:
        return int(self._rest.shape[2])

    @property
    def floor(self) -> int:
        """The fewest blocks that any plan runs."""
        return self.unit * (int(np.argmax(np.isfinite(self._rest[:, 0, 0]))) + self._full)

    def within(self, budget: float) -> BestPlan:
        """The best plan that runs at most ``budget`` blocks.

        Raises:
            SettingError: the budget is below the floor.
        """
        left = min(int(budget / self.unit + 1e-9), len(self._rest) - 1 + self._full) - self._full
        if left < 0 or not math.isfinite(self._rest[left, 0, 0]):
            raise SettingError(f"No plan runs as few as {budget:g} blocks; the fewest are {self.floor}.")
        error = float(self._rest[left, 0, 0])
        plan, spent, state = "F", self._full, (0, 0)
        while len(plan) < self._steps:
            letter, end, cost = self._next(left, state)
            plan += letter * (end - state[1] - 1)
            if end < self._steps:
                plan += "F"
            left, spent, state = left - cost, spent + cost, (state[1] + 1, end)
        return BestPlan(plan, spent * self.unit, error)

    def curve(self) -> Iterator[BestPlan]:
        """All useful plans, cheapest first: each has a smaller error than every cheaper one."""
        least = math.inf
        for left, error in enumerate(self._rest[:, 0, 0]):
            if error < least:
                least = float(error)
                yield self.within((left + self._full) * self.unit)

    def _next(self, left: int, state: tuple[int, int]) -> tuple[str, int, int]:
        """The letter of the best next run from a state, where it ends, and its cost including the step at its end."""
        best = (math.inf, "", 0, 0)
        before, last = state
        for letter, (errors, each) in self._kinds.items():
            for end in range(last + 1, self._steps + 1):
                cost = each * (end - last - 1) + (self._full if end < self._steps else 0)
                if cost <= left:
                    onward = self._rest[left - cost, last + 1, end] if end < self._steps else 0.0
                    best = min(best, (float(errors[before, last, end] + onward), letter, end, cost))
        return best[1:]


def total_error(plan: str, kinds: Mapping[str, tuple[Matrix, int]]) -> float:
    """The error that ``best_plans`` minimises, for any plan whose letters are F and those of ``kinds``.

    A run with several kinds, which the shortest path does not consider, counts as the worst of them.
    """
    computed = [step for step, letter in enumerate(plan) if letter == "F"]
    total = 0.0
    for place, last in enumerate(computed):
        end = computed[place + 1] if place + 1 < len(computed) else len(plan)
        before = computed[place - 1] + 1 if place else 0
        total += max((float(kinds[letter][0][before, last, end]) for letter in set(plan[last + 1 : end])), default=0.0)
    return total


def best_plans(kinds: Mapping[str, tuple[Matrix, int]], full: int) -> BestPlans:
    """Solve for all budgets at once. 50 steps take well under a second with only S, seconds with R and D.

    Args:
        kinds: for each letter, errors as ``displacements`` returns them, and blocks per step.
        full: blocks of a full step.

    Raises:
        SettingError: there are no kinds, or the error arrays differ in shape.
    """
    shapes = {errors.shape for errors, _ in kinds.values()}
    if len(shapes) != 1 or full < 1:
        raise SettingError("Finding plans needs errors of at least one kind of step, all of the same shape.")
    count = shapes.pop()[1]
    unit = reduce(math.gcd, [each for _, each in kinds.values()], full)
    full //= unit
    costs = {letter: (errors, each // unit) for letter, (errors, each) in kinds.items()}
    budgets = full * (count - 1) + 1
    # rest[b, i1 + 1, i2]: the least error of all that follows if i1 and i2 were the last two computed steps and at
    # most b units are left.
    rest = np.full((budgets, count, count), math.inf)
    for last in reversed(range(count)):
        best = rest[:, : last + 1, last]
        for errors, each in costs.values():
            for end in range(last + 1, count + 1):
                cost = each * (end - last - 1) + (full if end < count else 0)
                if cost >= budgets:
                    continue
                onward = rest[: budgets - cost, last + 1, end] if end < count else np.zeros(budgets - cost)
                run = errors[: last + 1, last, end]
                np.minimum(best[cost:], onward[:, None] + run[None, :], out=best[cost:])
    return BestPlans(unit, full, costs, rest)
