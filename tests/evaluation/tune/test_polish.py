"""Polishing goes from plan to better plan at equal cost, within its number of measurements."""

from __future__ import annotations

from collections import Counter

from h2gen.evaluation.tune.polish import neighbours, polish

BEST = "FFSSFSSSFS"


def distance(plan: str) -> float:
    """How far a plan's full steps are from the best ones."""
    places = [[i for i, letter in enumerate(text) if letter == "F"] for text in (plan, BEST)]
    return float(sum(abs(one - other) for one, other in zip(*places, strict=True)))


def test_it_climbs_to_the_best_plan() -> None:
    found = polish("FSSFSSFSSF", distance, lambda plan: 0.0, tries=500)
    assert (found.plan, found.error) == (BEST, 0.0)
    assert found.before == distance("FSSFSSFSSF")


def test_a_good_estimate_saves_measurements() -> None:
    blind = polish("FSSFSSFSSF", distance, lambda plan: 0.0, tries=500)
    seeing = polish("FSSFSSFSSF", distance, distance, tries=500)
    assert seeing.plan == BEST and seeing.tried < blind.tried


def test_it_measures_no_plan_twice_and_no_more_than_it_may() -> None:
    seen: Counter[str] = Counter()

    def measure(plan: str) -> float:
        seen[plan] += 1
        return distance(plan)

    found = polish("FSSFSSFSSF", measure, lambda plan: 0.0, tries=5)
    assert sum(seen.values()) == found.tried == 5
    assert max(seen.values()) == 1


def test_neighbours_cost_the_same_and_begin_with_a_full_step() -> None:
    plans = list(neighbours("FSRFS"))
    assert len(plans) == len(set(plans)) > 0
    assert all(sorted(plan) == sorted("FSRFS") and plan[0] == "F" for plan in plans)


def test_a_plan_that_nothing_betters_stays() -> None:
    assert polish(BEST, distance, distance, tries=100).plan == BEST
