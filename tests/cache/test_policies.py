"""Policies beside the paper's: an error budget, a checked hierarchy, an age for details, and steps skipped unseen."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from diffusers import FluxImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, h2_cache
from h2gen.cache.gauge import CALM, Gauge, is_calm
from h2gen.cache.plan import plan_from_steps
from h2gen.errors import SettingError
from tests.cache.drive import (
    assert_close,
    assert_same_decisions,
    both_models,
    flux,
    run,
    run_reference,
    same,
    thresholds,
)
from tests.cache.reference import Rules, reference
from tests.cache.test_checks import Operations
from tests.small import flux2_klein_pipeline, flux_pipeline, run_kwargs

LONG = 16
changes = st.floats(0, 2)
steps = st.lists(changes, min_size=1, max_size=12)


@given(steps)
def test_a_gauge_that_moves_adds_up_and_one_that_stays_does_not(seen: list[float]) -> None:
    moving, staying = Gauge(sigma=1.0), Gauge(sigma=1.0)
    for index, change in enumerate(seen, 1):
        sigma = 1 - index / 20
        total = moving.measure(change, sigma)
        moving.move(sigma, total)
        assert total == pytest.approx(math.fsum(seen[:index]))
        assert staying.measure(change, sigma) == change


@given(changes, st.floats(0.01, 0.4), st.floats(0, 3))
def test_a_gauge_looks_ahead_at_the_last_rate(change: float, distance: float, further: float) -> None:
    gauge = Gauge(sigma=0.9)
    assert gauge.ahead(0.5) is None
    gauge.measure(change, 0.9 - distance)
    assert gauge.ahead(0.9 - further * distance) == pytest.approx(further * change, abs=1e-9)
    gauge.move(0.9 - distance, 0.25)
    assert gauge.ahead(0.9 - 2 * distance) == pytest.approx(0.25 + change)


@pytest.mark.parametrize("change", [math.nan, math.inf])
def test_a_gauge_learns_no_rate_from_a_change_that_is_not_finite(change: float) -> None:
    gauge = Gauge(sigma=0.9)
    gauge.measure(0.2, 0.8)
    assert not math.isfinite(gauge.measure(change, 0.7))
    assert gauge.ahead(0.8) == pytest.approx(0.2)


def test_two_measurements_at_one_sigma_make_no_rate() -> None:
    gauge = Gauge(sigma=0.9)
    assert gauge.measure(0.2, 0.9) == 0.2
    assert gauge.ahead(0.5) is None


def test_only_what_is_far_below_a_threshold_is_calm() -> None:
    assert is_calm(0.99 * CALM * 0.2, 0.2)
    assert not is_calm(CALM * 0.2, 0.2)
    assert not is_calm(None, 0.2)
    assert not is_calm(0.0, 0.0)


POLICIES: dict[str, dict[str, Any]] = {
    "budget": {"budget": True},
    "checked": {"hierarchy": "checked"},
    "young details": {"max_detail_age": 2},
    "checked budget of young details": {"budget": True, "hierarchy": "checked", "max_detail_age": 3},
    "skips": {"max_skips": 1},
    "more skips": {"max_skips": 3, "warmup_steps": 2},
    "skips within a budget": {"max_skips": 2, "budget": True},
    "skips that both stages allow": {"max_skips": 2, "hierarchy": "checked"},
    "all at once": {"max_skips": 2, "budget": True, "hierarchy": "checked", "max_detail_age": 4, "forecast": 1},
    "skips between guards": {"max_skips": 2, "warmup_steps": 3, "max_consecutive": 3, "forecast": 1},
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
    """What the steps come to over all thresholds of these tests."""
    found = set()
    for scale in SCALES:
        model = flux()
        with h2_cache(model, **settings(rules_of(model, policy, scale))) as trace:
            run(model, LONG)
        found.add(plan_from_steps(trace.steps))
    return found


def test_each_policy_decides_something_that_the_paper_does_not() -> None:
    paper = plans({})
    for name, policy in POLICIES.items():
        assert plans(policy) != paper, name
    assert "C" in "".join(plans(POLICIES["checked"]))
    assert "C" in "".join(plans(POLICIES["young details"]))
    assert "SSS" in "".join(plans(POLICIES["more skips"]))
    assert "SSSS" not in "".join(plans(POLICIES["more skips"]))
    assert "SS" not in "".join(plans(POLICIES["skips"]))


def test_a_budget_never_reuses_for_longer_than_a_change_that_does_not_turn_back() -> None:
    """The sum of the steps is never less than the way from end to end."""
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


@pytest.mark.parametrize(("tau1", "tau2", "policy"), [(0, 1e9, {}), (1e9, 0, {"hierarchy": "checked"})])
def test_nothing_is_skipped_for_a_stage_that_nobody_measures(tau1: float, tau2: float, policy: dict[str, Any]) -> None:
    model = flux()
    with h2_cache(model, tau1=tau1, tau2=tau2, max_skips=9, warmup_steps=3, **policy) as trace:
        run(model, LONG)
    assert trace.summary.skipped == 0


def test_a_skipped_step_measures_nothing_and_still_decides_with_one_number_at_the_others() -> None:
    model = flux()
    rules = rules_of(model, {"max_skips": 2, "forecast": 1, "warmup_steps": 2}, SCALES[2])
    with Operations() as plainly:
        run(model, LONG)
    with h2_cache(model, **settings(rules)) as trace, Operations() as cached:
        run(model, LONG)
    assert trace.summary.skipped > 0
    for step in trace.steps:
        if step.skipped:
            assert (step.structure.change, step.detail.change, step.blocks_run) == (None, None, 0)
    changes = [c for step in trace.steps for c in (step.structure.change, step.detail.change) if c is not None]
    timesteps = {number for step in trace.steps for number in (step.sigma, step.timestep)}
    read = [number for number in cached.read if number not in plainly.read and number not in timesteps]
    assert read == changes


def test_a_velocity_is_forecast_from_no_longer_than_its_age_allows() -> None:
    """Where the detail is reused as it was, no velocity is kept, and the gauge of the structure begins anew."""
    model, found = flux(), {}
    for forecast in (0, 1):
        for share in (0.3, 0.5, 0.9):
            tau1 = 1.5 * thresholds(model, share, 1.0)["tau1"]
            rules = Rules(tau1, 1e9, max_skips=2, warmup_steps=2, forecast=forecast)
            decisions = run_reference(model, rules, 2 * LONG)[1]
            with h2_cache(model, **settings(rules)) as trace:
                run(model, 2 * LONG)
            assert_same_decisions(trace.steps, decisions, rel=1e-3)
            found.setdefault(forecast, []).append(plan_from_steps(trace.steps))
    assert any(re.search("D[^F]*D[^F]*S", plan) for plan in found[0])
    assert not any(re.search("D[^F]*D[^F]*D[^F]*S", plan) for plan in found[0])
    assert any(re.search("D[^F]*D[^F]*D[^F]*S", plan) for plan in found[1])  # with the detail forecast, it is kept


OFF = {"forecast": 0, "plan": "", "max_skips": 0, "budget": False, "hierarchy": "forced", "max_detail_age": 0}


@both_models
def test_left_off_they_change_no_bit(make: Any) -> None:
    model = make()
    tau = thresholds(model, 0.4, 0.7)
    wanted, decisions = run_reference(model, Rules(**tau))
    with h2_cache(model, **tau, **OFF) as trace:
        assert same(run(model), wanted)
    assert_same_decisions(trace.steps, decisions)
    assert CacheConfig(**tau) == CacheConfig(**tau, **OFF)


@pytest.mark.parametrize("on", ["pipeline", "transformer"])
@pytest.mark.parametrize("kind", ["text", "image with guidance", "FLUX.2 with guidance"])
def test_pipelines_skip_as_the_straight_line_does(kind: str, on: str) -> None:
    guided = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
    pipe, more, passes = {
        "text": lambda: (flux_pipeline(), {}, ("cond",)),
        "image with guidance": lambda: (flux_pipeline(FluxImg2ImgPipeline), guided, ("cond", "uncond")),
        "FLUX.2 with guidance": lambda: (
            flux2_klein_pipeline(is_distilled=False),
            {"guidance_scale": 3.0},
            ("cond", "uncond"),
        ),
    }[kind]()
    policy = {"tau1": 3.0, "tau2": 3.0, "max_skips": 2, "forecast": 1, "warmup_steps": 2, "budget": True}
    with reference(pipe.transformer, Rules(**policy), passes) as decisions:
        wanted = pipe(**run_kwargs(pipe, steps=10) | more).images
    with h2_cache(pipe if on == "pipeline" else pipe.transformer, **policy) as trace:
        got = [pipe(**run_kwargs(pipe, steps=10) | more).images for _ in range(2)]
    assert_same_decisions(trace.steps[: len(decisions)], decisions, rel=1e-3)
    assert any(step.skipped for step in trace.steps)
    assert np.allclose(got[0], wanted, atol=1e-3)
    assert np.array_equal(*got)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_skips", -1, "whole number"),
        ("max_skips", True, "whole number"),
        ("max_detail_age", 1.5, "whole number"),
        ("budget", 1, "true or false"),
        ("budget", "yes", "true or false"),
        ("hierarchy", "loose", "forced or checked"),
        ("hierarchy", 1, "text"),
    ],
)
def test_a_policy_that_means_nothing_is_refused_by_name(name: str, value: Any, words: str) -> None:
    with pytest.raises(SettingError, match=f"{name} is .*{words}"):
        CacheConfig(**{name: value})
