"""The displacement of a run of forecast steps, from inner products, is the same as from the tensors themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from h2gen.cache.forecast import extrapolation
from h2gen.errors import SettingError
from h2gen.evaluation.tune.forecast_errors import Matrix, SolverPasses, displacements

STEPS, WIDTH = 9, 40


def path(seed: int = 0) -> Matrix:
    """Tensors that change smoothly, as a model's do, with a little noise."""
    random = np.random.default_rng(seed)
    times = np.linspace(0, 1, STEPS)[:, None]
    return sum(random.normal(size=(1, WIDTH)) * times**p for p in range(4)) + 0.01 * random.normal(size=(STEPS, WIDTH))


def schedule(seed: int = 1) -> SolverPasses:
    cuts = np.sort(np.random.default_rng(seed).uniform(0.02, 1, STEPS))[::-1]
    return SolverPasses(tuple(cuts), tuple(cuts - np.append(cuts[1:], 0)))


def by_hand(x: Matrix, when: SolverPasses, first: int | None, last: int, end: int, order: int, gains: Matrix) -> float:
    moved = np.zeros(WIDTH)
    for j in range(last + 1, end):
        forecast = x[last]
        if first is not None and order == 1:
            slope = extrapolation(when.sigmas[first], when.sigmas[last], when.sigmas[j])
            forecast = x[last] + slope * (x[last] - x[first])
        moved += when.intervals[j] * gains[j] * (x[j] - forecast)
    return float(np.linalg.norm(moved))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gram_matrix_gives_what_the_tensors_give(order: int, weighted: bool) -> None:
    x, when = path(), schedule()
    gains = np.random.default_rng(2).uniform(0.5, 2, STEPS) if weighted else np.ones(STEPS)
    found = displacements(x @ x.T, when, order=order, gains=gains if weighted else None)
    assert found.shape == (STEPS + 1, STEPS, STEPS + 1)
    for last in range(STEPS):
        for end in range(last + 1, STEPS + 1):
            for first in [None, *range(last)]:
                expected = by_hand(x, when, first, last, end, order, gains)
                assert found[0 if first is None else first + 1, last, end] == pytest.approx(expected, abs=1e-6)


def test_what_was_made_good_for_adds_the_line_between_both_ends_of_the_run() -> None:
    x, when = path(), schedule()
    gains = np.random.default_rng(2).uniform(0.5, 2, STEPS)
    found = displacements(x @ x.T, when, farthest=math.inf, corrected=True, gains=gains)
    plain = displacements(x @ x.T, when, farthest=math.inf, gains=gains)
    for last in range(STEPS):
        for end in range(last + 1, STEPS):
            moved = np.zeros(WIDTH)
            for j in range(last + 1, end):
                share = (when.sigmas[j] - when.sigmas[last]) / (when.sigmas[end] - when.sigmas[last])
                moved += when.intervals[j] * gains[j] * (x[j] - x[last] - share * (x[end] - x[last]))
            left = (found - plain)[: last + 1, last, end]
            assert left == pytest.approx(float(np.linalg.norm(moved)), abs=1e-6)
    assert np.array_equal(found[:, :, STEPS], plain[:, :, STEPS], equal_nan=True)  # nothing corrects the end


def test_a_run_without_steps_moves_nothing_and_what_is_no_run_has_no_number() -> None:
    x = path()
    found = displacements(x @ x.T, schedule())
    assert found[2, 3, 4] == pytest.approx(0, abs=1e-6)
    assert math.isnan(found[4, 3, 5]) and math.isnan(found[1, 3, 3])
    assert not math.isnan(found[0, 0, STEPS])


def test_a_straight_line_is_forecast_without_error_and_reused_with_one() -> None:
    when = schedule()
    x = np.outer(when.sigmas, np.ones(WIDTH)) + 3
    linear, reused = (displacements(x @ x.T, when, order=order) for order in (1, 0))
    near = SolverPasses((1.0, 0.8, 0.7, 0.65), (0.2, 0.1, 0.05, 0.65))
    y = np.outer(near.sigmas, np.ones(WIDTH)) + 3
    assert displacements(y @ y.T, near)[1, 1, 3] == pytest.approx(0, abs=1e-5)
    assert displacements(y @ y.T, near)[1, 1, 4] > 0.1  # a line is not extended without limit
    assert displacements(y @ y.T, near, farthest=math.inf)[1, 1, 4] == pytest.approx(0, abs=1e-5)
    assert reused[1, 2, STEPS] > linear[1, 2, STEPS] > 0.1
    assert linear[0, 2, STEPS] == pytest.approx(reused[0, 2, STEPS])


def test_a_solver_that_visits_a_sigma_twice_draws_no_line_through_both_visits() -> None:
    x = path()
    twice = SolverPasses((1, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2), (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2))
    found = displacements(x @ x.T, twice)
    assert np.isfinite(found[2, 2, 4:]).all()
    assert found[2, 2, 4] == pytest.approx(displacements(x @ x.T, twice, order=0)[2, 2, 4])


def test_matrices_and_schedules_that_do_not_fit_are_told_with_their_sizes() -> None:
    with pytest.raises(SettingError, match="9 steps need a Gram matrix of 9 by 9"):
        displacements(np.eye(3), schedule())
    with pytest.raises(SettingError, match="2 sigmas and 1 intervals"):
        SolverPasses((1.0, 0.5), (0.5,))
