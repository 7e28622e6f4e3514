"""A tolerance, or thresholds, are found for a budget, and never above it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from h2gen.cache import CacheConfig
from h2gen.evaluation.fit_budget import ADAPTIVE, MOST, TOLERANCES, fit_to_budget, fit_tolerance, guard

FAMILY = CacheConfig(1, 0.5, forecast=1)


@pytest.mark.parametrize("budget", [0.9, 0.5, 0.33, 0.2])
def test_the_share_comes_near_and_not_above(budget: float) -> None:
    """Shares fall in steps of a fiftieth."""
    asked = []

    def share_of(cache: CacheConfig) -> float:
        asked.append(cache)
        assert cache.tau2 == pytest.approx(cache.tau1 / 2) and cache.forecast == 1
        return math.ceil(50 / (1 + 10 * cache.tau1)) / 50

    found = fit_to_budget(FAMILY, budget, share_of)
    assert found is not None
    assert budget - 0.04 <= found.share <= budget
    assert share_of(found.cache) == found.share
    assert len(asked) <= MOST + 1


def test_a_budget_below_what_a_family_can_do_has_none() -> None:
    assert fit_to_budget(FAMILY, 0.1, lambda cache: max(0.17, 1 - cache.tau1)) is None


def test_a_tolerance_is_searched_over_all_sizes() -> None:
    for scale in (3e-5, 2e-3, 0.3):
        found = fit_to_budget(ADAPTIVE, 0.3, lambda cache, scale=scale: 1 / (1 + cache.tolerance / scale))  # type: ignore[misc]
        assert found is not None and 0.29 <= found.share <= 0.3
        assert (found.cache.tau1, found.cache.tau2) == (0, 0)


@pytest.mark.parametrize("budget", [0.9, 0.5, 0.2])
def test_a_tolerance_is_found_beside_a_plan_with_few_tries(budget: float) -> None:
    """Between a thirtieth and all of the steps are computed; the plan stays as it is."""
    family, asked = replace(ADAPTIVE, plan="FSSF"), []

    def share_of(cache: CacheConfig) -> float:
        asked.append(cache.tolerance)
        assert cache.plan == "FSSF"
        return max(1 / 30, math.ceil(30 / (1 + cache.tolerance / 0.03)) / 30)

    found = fit_tolerance(family, budget, share_of)
    assert found is not None and budget - 0.08 <= found.share <= budget
    assert 1 < len(asked) <= TOLERANCES


def test_no_tolerance_is_found_where_the_plan_alone_is_above_the_budget() -> None:
    assert fit_tolerance(replace(ADAPTIVE, plan="FFSF"), 0.5, lambda _: 0.75) is None


def test_a_guard_has_the_lowest_tolerance_that_adds_nothing_to_the_plan() -> None:
    """In these images the plan's largest estimate is 0.02: a lower tolerance adds steps."""
    asked = []

    def share_of(cache: CacheConfig) -> float:
        asked.append(cache)
        assert (cache.tau1, cache.tau2, cache.plan) == (0, 0, "FSSF")
        return 0.5 if cache.tolerance >= 0.02 else 0.75

    found = guard("FSSF", share_of)
    assert 0.02 <= found.tolerance < 0.022 and found in asked
    assert len(asked) <= TOLERANCES
