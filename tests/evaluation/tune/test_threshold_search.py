"""The search for thresholds: within the budget, with few measurements, from what the last budget found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from h2gen.cache import CacheConfig
from h2gen.evaluation.tune.candidates import Candidate, adaptive_method
from h2gen.evaluation.tune.threshold_search import PAPER, ThresholdSearch

BEST = replace(PAPER, forecast=1, warmup_steps=3, hierarchy="checked")


def share_of(cache: CacheConfig) -> float:
    """Falls with the thresholds, down to the guards' share."""
    guarded = (cache.warmup_steps + cache.final_steps) / 20
    return guarded + (1 - guarded) / (1 + 10 * (cache.tau1 + cache.tau2))


class Model:
    """Measured shares are larger than predicted ones, and the error is least at ``BEST``."""

    def __init__(self) -> None:
        self.measured: list[CacheConfig] = []

    def measure(self, cache: CacheConfig) -> Candidate:
        self.measured.append(cache)
        share = min(1.0, 1.04 * share_of(cache))
        names = ("forecast", "warmup_steps", "hierarchy", "budget", "pfs", "final_steps", "max_consecutive")
        wrong = sum(getattr(cache, name) != getattr(BEST, name) for name in names)
        return Candidate(adaptive_method(cache, 20), share, (1 + wrong) * (1 - share) / 100)


def test_it_finds_what_refines_the_thresholds_and_stays_within_the_budget() -> None:
    model = Model()
    found = ThresholdSearch(share_of, model.measure, 60).within(0.5)
    assert found is not None and 0.47 <= found.share <= 0.5
    cache = found.method.cache
    assert (cache.forecast, cache.warmup_steps, cache.hierarchy, cache.budget) == (1, 3, "checked", False)
    assert len(model.measured) <= 60
    assert "forecast 1, hierarchy checked, warmup-steps 3" in found.method.label


def test_the_next_budget_begins_with_what_the_last_one_found() -> None:
    model = Model()
    search = ThresholdSearch(share_of, model.measure, 60)
    search.within(0.5)
    count = len(model.measured)
    found = search.within(0.4)
    assert found is not None and 0.37 <= found.share <= 0.4
    assert {cache.warmup_steps for cache in model.measured[count : count + 2]} == {3}


@pytest.mark.parametrize("tries", [1, 2, 5])
def test_no_more_is_measured_than_was_allowed(tries: int) -> None:
    model = Model()
    ThresholdSearch(share_of, model.measure, tries).within(0.5)
    assert len(model.measured) == tries


def test_guards_that_leave_no_room_for_a_budget_give_way_to_the_papers_settings() -> None:
    model = Model()
    search = ThresholdSearch(share_of, model.measure, 60)
    search.within(0.5)
    count = len(model.measured)
    found = search.within(0.13)
    assert found is not None and found.share <= 0.13
    assert model.measured[count].warmup_steps == 0
    assert search.within(0.001) is None
