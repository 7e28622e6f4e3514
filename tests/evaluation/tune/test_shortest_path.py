"""The shortest path gives the best of all plans, for every budget; small schedules are checked exhaustively."""

from __future__ import annotations

import itertools
import math
import re
import time

import numpy as np
import pytest

from h2gen.errors import SettingError
from h2gen.evaluation.tune.forecast_errors import Matrix, SolverPasses, displacements
from h2gen.evaluation.tune.shortest_path import BestPlan, best_plans


def random_errors(steps: int, seed: int) -> Matrix:
    """Random errors, so that no greedy choice is right by luck."""
    errors = np.random.default_rng(seed).uniform(0.1, 1, (steps + 1, steps, steps + 1))
    for last in range(steps):
        errors[:, last, last + 1] = 0  # no step between
    return errors


def cost_of(plan: str, kinds: dict[str, tuple[Matrix, int]], full: int) -> tuple[int, float]:
    """Blocks and total error of a plan, run by run."""
    computed = [i for i, letter in enumerate(plan) if letter == "F"]
    blocks, error = full * len(computed), 0.0
    for place, last in enumerate(computed):
        end = computed[place + 1] if place + 1 < len(computed) else len(plan)
        if end > last + 1:
            errors, each = kinds[plan[last + 1]]
            blocks += each * (end - last - 1)
            error += errors[computed[place - 1] + 1 if place else 0, last, end]
    return blocks, float(error)


def all_plans(steps: int, letters: str) -> list[str]:
    """Every plan that begins with a full step and whose runs are each of one kind."""
    mixed = re.compile("|".join(f"{one}{other}" for one, other in itertools.permutations(letters, 2)) or "$^")
    plans = ("F" + "".join(rest) for rest in itertools.product("F" + letters, repeat=steps - 1))
    return [plan for plan in plans if len(letters) < 2 or not mixed.search(plan)]


@pytest.mark.parametrize(
    ("steps", "costs", "full"),
    [(8, {"S": 0}, 12), (8, {"R": 2}, 12), (6, {"S": 0, "R": 2, "D": 5}, 12), (6, {"S": 0, "R": 2, "D": 20}, 57)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_plan_of_any_budget_has_less_error(steps: int, costs: dict[str, int], full: int, seed: int) -> None:
    kinds = {letter: (random_errors(steps, 10 * seed + n), each) for n, (letter, each) in enumerate(costs.items())}
    solved = best_plans(kinds, full)
    tried = [cost_of(plan, kinds, full) for plan in all_plans(steps, "".join(costs))]
    assert solved.floor == min(blocks for blocks, _ in tried)
    for budget in range(solved.floor, steps * full + 1):
        found = solved.within(budget)
        least = min(error for blocks, error in tried if blocks <= budget)
        assert found.error == pytest.approx(least)
        assert cost_of(found.plan, kinds, full) == (found.blocks, pytest.approx(found.error))
        assert found.blocks <= budget and len(found.plan) == steps
    curve = list(solved.curve())
    assert [found.blocks for found in curve] == sorted({found.blocks for found in curve})
    assert [found.error for found in curve] == sorted({found.error for found in curve}, reverse=True)
    assert curve[-1] == BestPlan("F" * steps, steps * full, 0.0)


def test_fifty_steps_take_seconds_with_every_kind_of_step() -> None:
    kinds = {"S": (random_errors(50, 0), 0), "R": (random_errors(50, 1), 2), "D": (random_errors(50, 2), 20)}
    started = time.process_time()  # whatever else the machine does meanwhile
    solved = best_plans(kinds, 57)
    assert solved.within(0.2 * 50 * 57).blocks <= 570
    assert time.process_time() - started < 60


def test_steps_are_spent_where_the_path_bends() -> None:
    sigmas = np.linspace(1, 1 / 20, 20)
    bend = np.where(sigmas > 0.5, 0.0, (0.5 - sigmas) ** 2)
    x = np.stack([sigmas, 30 * bend], axis=1)
    when = SolverPasses(tuple(sigmas), (0.05,) * 20)
    plan = best_plans({"S": (displacements(x @ x.T, when), 0)}, 1).within(8).plan
    assert plan.count("F") == 8
    assert plan[11:].count("F") >= 5


def test_a_budget_below_the_floor_is_told_with_the_floor() -> None:
    solved = best_plans({"R": (random_errors(5, 0), 2)}, 12)
    assert solved.floor == 12 + 4 * 2
    with pytest.raises(SettingError, match="the fewest are 20"):
        solved.within(19)
    assert math.isfinite(solved.within(20).error)


def test_one_step_is_full_and_nothing_is_no_plan() -> None:
    assert best_plans({"S": (random_errors(1, 0), 0)}, 12).within(12) == BestPlan("F", 12, 0.0)
    with pytest.raises(SettingError, match="at least one kind"):
        best_plans({}, 12)
