"""Policies beyond the paper's: an error budget, a checked hierarchy, an age for details, and skipped steps."""

from __future__ import annotations

from typing import Any

import pytest

from h2gen.cache import CacheConfig, h2_cache
from h2gen.errors import SettingError
from tests.cache.drive import (
    assert_close,
    assert_same_decisions,
    both_models,
    flux,
    plan_from_steps,
    run,
    run_reference,
    same,
    thresholds,
)
from tests.cache.reference import Rules

LONG = 16

POLICIES: dict[str, dict[str, Any]] = {
    "budget": {"budget": True},
    "checked": {"hierarchy": "checked"},
    "young details": {"max_detail_age": 2},
    "checked budget of young details": {"budget": True, "hierarchy": "checked", "max_detail_age": 3},
    "all at once": {"budget": True, "hierarchy": "checked", "max_detail_age": 4, "forecast": 1},
    "between guards": {"budget": True, "warmup_steps": 3, "max_consecutive": 3, "forecast": 1},
}
# Shares of the natural changes below the thresholds, and how often each threshold is taken: far apart for long runs.
SCALES = [(0.5, 0.5, 1.0), (0.3, 0.9, 2.0), (0.9, 0.4, 3.0)]


def rules_of(model: Any, policy: dict[str, Any], scale: tuple[float, float, float], **kwargs: Any) -> Rules:
    tau = thresholds(model, *scale[:2], **kwargs)
    return Rules(**{name: value * scale[2] for name, value in tau.items()}, **policy)


def settings(rules: Rules) -> dict[str, Any]:
    return {name: value for name, value in vars(rules).items() if name not in ("plan", "grid")}


@both_models
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_decisions_are_those_of_a_computation_in_a_straight_line(
    make: Any, policy: dict[str, Any], scale: tuple[float, float, float]
) -> None:
    model = make()
    rules = rules_of(model, policy, scale)
    wanted, decisions = run_reference(model, rules, LONG)
    with h2_cache(model, **(settings(rules) | {"final_steps": 0})) as trace:
        got = run(model, LONG)
    assert_same_decisions(trace.steps, decisions, rel=1e-3)
    assert_close(got, wanted, 1e-3)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_cond_and_uncond_have_each_their_own_gauge(policy: dict[str, Any]) -> None:
    model, passes = flux(), ("cond", "uncond")
    rules = rules_of(model, policy, SCALES[1])
    wanted, decisions = run_reference(model, rules, LONG, passes=passes)
    with h2_cache(model, **settings(rules)) as trace:
        got = run(model, LONG, passes=passes)
    assert_same_decisions(trace.steps, decisions, rel=1e-3)
    assert_close(got, wanted, 1e-3)


def plans(policy: dict[str, Any]) -> set[str]:
    """The outcomes of the steps over all thresholds of these tests."""
    found = set()
    for scale in SCALES:
        model = flux()
        with h2_cache(model, **settings(rules_of(model, policy, scale))) as trace:
            run(model, LONG)
        found.add(plan_from_steps(trace.steps))
    return found


@pytest.mark.slow
def test_each_policy_decides_something_that_the_paper_does_not() -> None:
    paper = plans({})
    for name, policy in POLICIES.items():
        assert plans(policy) != paper, name
    assert "C" in "".join(plans(POLICIES["checked"]))
    assert "C" in "".join(plans(POLICIES["young details"]))


def test_a_budget_never_reuses_for_longer_than_a_change_that_does_not_turn_back() -> None:
    """The sum of the steps is never less than the distance between the ends."""
    model = flux()
    for scale in SCALES:
        tau = settings(rules_of(model, {}, scale))
        with h2_cache(model, **tau) as without:
            run(model, LONG)
        with h2_cache(model, **(tau | {"budget": True})) as within:
            run(model, LONG)
        assert within.summary.blocks_run >= without.summary.blocks_run


def test_no_detail_grows_older_than_it_may() -> None:
    model = flux()
    with h2_cache(model, tau1=1e9, tau2=1e9, max_detail_age=3) as trace:
        run(model, LONG)
    assert plan_from_steps(trace.steps) == "FRRRCRRRCRRRCRRR"
    assert [step.detail.outcome.value for step in trace.steps][4::4] == ["guarded"] * 3


def test_a_checked_detail_without_a_threshold_is_computed_at_every_step() -> None:
    model = flux()
    with h2_cache(model, tau1=1e9, tau2=0, hierarchy="checked") as trace:
        run(model, 4)
    assert plan_from_steps(trace.steps) == "FCCC"


OFF = {"forecast": 0, "plan": "", "tolerance": 0.0, "budget": False, "hierarchy": "forced", "max_detail_age": 0}


@both_models
def test_left_off_they_change_no_bit(make: Any) -> None:
    model = make()
    tau = thresholds(model, 0.4, 0.7)
    wanted, decisions = run_reference(model, Rules(**tau))
    with h2_cache(model, **tau, **OFF) as trace:
        assert same(run(model), wanted)
    assert_same_decisions(trace.steps, decisions)
    assert CacheConfig(**tau) == CacheConfig(**tau, **OFF)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tolerance", -1, "from 0"),
        ("tolerance", True, "give a number"),
        ("max_detail_age", 1.5, "whole number"),
        ("budget", 1, "true or false"),
        ("budget", "yes", "true or false"),
        ("hierarchy", "loose", "forced or checked"),
        ("hierarchy", 1, "forced or checked"),
    ],
)
def test_a_policy_that_means_nothing_is_refused_by_name(name: str, value: Any, words: str) -> None:
    with pytest.raises(SettingError, match=f"{name} .*{words}"):
        CacheConfig(**{name: value})
