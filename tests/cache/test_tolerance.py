"""Steps are skipped within a tolerance, and corrected: numbers first, then velocities, then whole pipelines."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, FluxKontextPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, StepRecord, h2_cache
from h2gen.cache.policies.tolerance import ErrorEstimate
from h2gen.cache.velocity import VelocityHistory, error_rates
from h2gen.errors import SettingError
from h2gen.generation.solvers import solving
from tests.cache.drive import assert_same_decisions, noise, plan_from_steps
from tests.cache.reference import Rules, reference, sigmas_of
from tests.cache.test_checks import Operations
from tests.small import flux2_klein_pipeline, flux_pipeline, run_kwargs

GUIDED = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
SIGMAS = [1 - step / 10 for step in range(10)]

# Numbers


def test_the_displacement_is_the_sum_of_growing_errors_times_intervals() -> None:
    estimate = ErrorEstimate(0.9, rate=2.0)
    for sigma, interval in ((0.8, -0.1), (0.7, -0.2), (0.5, -0.1)):
        estimate = estimate.after(sigma, interval)
    assert estimate.displacement == pytest.approx(2.0 * (0.1 * 0.1 + 0.2 * 0.2 + 0.1 * 0.4))


def test_a_second_step_at_one_sigma_does_not_count_as_known() -> None:
    assert ErrorEstimate(0.9, rate=2.0).after(0.9, -0.1).displacement == pytest.approx(2.0 * 0.1 * 0.1)


@given(st.floats(0, 5), st.floats(0, 1), st.floats(-1, 0))
def test_a_skipped_step_never_makes_a_displacement_smaller(rate: float, sigma: float, interval: float) -> None:
    estimate = ErrorEstimate(1.0, rate, 0.1)
    assert estimate.after(sigma, interval).displacement >= 0.1


# Velocities


def parabola(sigma: float) -> torch.Tensor:
    """A velocity whose curvature in sigma is 2 everywhere, relative to its size at sigma 0.5."""
    return torch.ones(1, 3, 4) * (1 + 2 * (sigma - 0.5) ** 2)


def kept(*points: tuple[float, torch.Tensor]) -> VelocityHistory:
    velocities = VelocityHistory()
    for sigma, velocity in points:
        velocities.keep(velocity, sigma)
    return velocities


@given(st.permutations(range(9)).map(lambda order: sorted(order[:4], reverse=True)))
def test_what_is_linear_is_forecast_exactly_however_far(places: list[int]) -> None:
    start, slope = noise(1, 5, 4, seed=1), noise(1, 5, 4, seed=2)
    *seen, ahead = (place / 8 for place in places)
    velocities = kept(*((sigma, start + sigma * slope) for sigma in seen))
    assert torch.allclose(velocities.forecast(ahead), start + ahead * slope, atol=1e-4)


def test_a_velocity_that_jumps_about_is_held() -> None:
    """Each change of the velocity reverses the one before, or is at a right angle to it."""
    there, back = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]])
    for last in (back, there + torch.tensor([[[0.0, 3.0]]])):
        assert torch.equal(kept((0.9, back), (0.8, there), (0.7, last)).forecast(0.5), last)


def test_a_line_that_was_followed_by_half_is_extrapolated_by_half() -> None:
    first, way, aside = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 0.2]]])
    second = first + way  # the line says that another way follows over the same distance
    third = second + 0.5 * way + aside
    velocities = kept((0.9, first), (0.8, second), (0.7, third))
    assert torch.allclose(velocities.forecast(0.6), third + 0.5 * (third - second))
    assert torch.allclose(velocities.forecast(0.5), third + 0.5 * 2 * (third - second))


@pytest.mark.parametrize("known", (1, 2))
def test_without_a_line_to_compare_with_the_last_velocity_itself_is_the_forecast(known: int) -> None:
    values = [noise(1, 5, 4, seed=seed) for seed in range(known)]
    velocities = kept(*((0.9 - 0.1 * step, value) for step, value in enumerate(values)))
    assert velocities.forecast(0.3) is values[-1]


def test_equal_velocities_are_forecast_as_they_are() -> None:
    same = noise(1, 5, 4, seed=1)
    assert torch.equal(kept((0.9, same), (0.8, same.clone()), (0.7, same.clone())).forecast(0.2), same)


def test_a_velocity_of_zero_stays_zero() -> None:
    velocities, zero = VelocityHistory(measured=True), torch.zeros(1, 3, 4)
    for sigma in (0.9, 0.8, 0.7):
        velocities.keep(zero, sigma, -0.1)
    velocities.forecast(0.6, -0.1)
    assert torch.equal(velocities.keep(zero, 0.5, -0.1), zero)


def test_the_error_rate_is_that_of_the_last_forecast_and_is_read_once() -> None:
    velocities = VelocityHistory(measured=True)
    velocities.keep(parabola(0.9), 0.9)
    assert error_rates([velocities]) == {}
    velocities.keep(parabola(0.7), 0.7)
    rate = (parabola(0.9) - parabola(0.7)).abs().mean() / parabola(0.7).abs().mean() / 0.2
    assert error_rates([VelocityHistory(), velocities]) == {1: pytest.approx(float(rate), rel=1e-4)}
    assert error_rates([velocities]) == {}


def test_only_the_pictures_own_tokens_say_how_far_and_how_wrong() -> None:
    own = torch.tensor([1.0, 1.0, 0.0])
    alone, beside = VelocityHistory(measured=True), VelocityHistory(measured=True)
    for step, sigma in enumerate((0.9, 0.8, 0.7)):
        mine, others = noise(1, 2, 4, seed=step), 100 * noise(1, 1, 4, seed=step + 5)
        for history, velocity, which in ((alone, mine, None), (beside, torch.cat([mine, others], dim=1), own)):
            history.keep(velocity, sigma, -0.1, which)
    rates = error_rates([alone, beside])
    assert rates[0] == pytest.approx(rates[1], rel=1e-5)
    assert torch.allclose(alone.forecast(0.6, -0.1), beside.forecast(0.6, -0.1)[:, :2], atol=1e-5)
    corrected = [
        history.keep(torch.full((1, tokens, 4), 0.5), 0.5, -0.1, which)
        for history, tokens, which in ((alone, 2, None), (beside, 3, own))
    ]
    assert torch.allclose(corrected[0], corrected[1][:, :2], atol=1e-5)


def moved(computed: set[int], velocity: Callable[[float], torch.Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """Where Euler's steps move a picture if some velocities are computed and the others forecast."""
    velocities, picture = VelocityHistory(), torch.zeros(1, 3, 4, dtype=torch.float64)
    for step, (sigma, after) in enumerate(pairwise([*SIGMAS, 0.0])):
        interval = after - sigma
        if step in computed:
            used = velocities.keep(velocity(sigma).to(dtype), sigma, interval)
        else:
            used = velocities.forecast(sigma, interval)
        assert used.dtype == dtype
        picture += interval * used.double()
    return picture


@given(some=st.sets(st.integers(1, 8)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_skipped_steps_are_corrected_towards_the_line_between_computed_steps(
    some: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = sorted({0, 9, *some})
    table = {SIGMAS[step]: parabola(SIGMAS[step]) for step in computed}
    for first, last in pairwise(computed):
        for step in range(first + 1, last):
            share = (step - first) / (last - first)
            table[SIGMAS[step]] = torch.lerp(table[SIGMAS[first]], table[SIGMAS[last]], share)
    wanted = moved(set(range(10)), lambda sigma: table[sigma])
    with monkeypatch.context() as patch:  # the whole correction, whatever the error
        patch.setattr("h2gen.cache.velocity.relative_change", lambda *_: torch.tensor(0.0))
        assert torch.allclose(moved(set(computed), parabola), wanted, atol=1e-5)


def test_making_good_brings_the_picture_nearer_to_where_all_steps_bring_it() -> None:
    every = moved(set(range(10)), parabola)
    some = {0, 1, 4, 9}
    velocities, alone = VelocityHistory(), torch.zeros_like(every)
    for step, (sigma, after) in enumerate(pairwise([*SIGMAS, 0.0])):
        used = velocities.keep(parabola(sigma), sigma) if step in some else velocities.forecast(sigma)
        alone += (after - sigma) * used
    assert (moved(some, parabola) - every).abs().max() < 0.6 * (alone - every).abs().max()


def test_in_half_precision_it_is_rounded_once() -> None:
    exact, rounded = moved({0, 1, 4, 9}, parabola), moved({0, 1, 4, 9}, parabola, torch.bfloat16)
    assert (rounded - exact).abs().max() < 3 * torch.finfo(torch.bfloat16).eps


# Pipelines


KINDS: dict[str, Callable[[], tuple[Any, dict[str, Any], tuple[str, ...]]]] = {
    "text": lambda: (flux_pipeline(), {}, ("cond",)),
    "text with guidance": lambda: (flux_pipeline(), GUIDED, ("cond", "uncond")),
    "image with guidance": lambda: (
        flux_pipeline(FluxImg2ImgPipeline),
        GUIDED | {"strength": 0.8},
        ("cond", "uncond"),
    ),
    "reference picture": lambda: (flux_pipeline(FluxKontextPipeline), {}, ("cond",)),
    "FLUX.2 with guidance": lambda: (
        flux2_klein_pipeline(is_distilled=False),
        {"guidance_scale": 3.0},
        ("cond", "uncond"),
    ),
}
POLICIES: dict[str, dict[str, Any]] = {
    "alone": {"tau1": 0.0, "tau2": 0.0, "tolerance": 5e-2},
    "tighter": {"tau1": 0.0, "tau2": 0.0, "tolerance": 2e-2},
    "between guards": {"tau1": 0.0, "tau2": 0.0, "tolerance": 0.2, "warmup_steps": 4, "max_consecutive": 2},
    "beside the gates": {"tau1": 0.2, "tau2": 0.3, "tolerance": 5e-2, "forecast": 1, "warmup_steps": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_pipelines_skip_and_make_good_as_the_straight_line_does(kind: Any, policy: dict[str, Any]) -> None:
    pipe, more, passes = kind()
    plain = pipe(**run_kwargs(pipe, steps=16) | more).images
    sigmas = sigmas_of(pipe)
    with reference(pipe.transformer, Rules(**policy), passes, len(sigmas) - 1, sigmas) as decisions:
        wanted = pipe(**run_kwargs(pipe, steps=16) | more).images
    with h2_cache(pipe, **policy) as trace:
        got = [pipe(**run_kwargs(pipe, steps=16) | more).images for _ in range(2)]
    assert_same_decisions(trace.steps[: len(decisions)], decisions, rel=1e-3)
    assert np.allclose(got[0], wanted, atol=1e-3)
    assert np.array_equal(*got)
    assert any(step.skipped for step in trace.steps)
    assert not np.array_equal(got[0], plain)


def test_a_plan_that_skips_makes_good_too() -> None:
    pipe = flux_pipeline()
    pipe(**run_kwargs(pipe, steps=8))
    rules = Rules(0, 0, plan="FFSSFSSF")
    with reference(pipe.transformer, rules, ("cond",), 8, sigmas_of(pipe)):
        wanted = pipe(**run_kwargs(pipe, steps=8)).images
    with h2_cache(pipe, plan=rules.plan):
        assert np.allclose(pipe(**run_kwargs(pipe, steps=8)).images, wanted, atol=1e-4)


def test_a_record_says_what_its_step_was_decided_by() -> None:
    pipe, tolerance = flux_pipeline(), 5e-2
    with h2_cache(pipe, tau1=0, tau2=0, tolerance=tolerance) as trace:
        pipe(**run_kwargs(pipe, steps=16))
    errors = [step.error for step in trace.steps]
    assert [index for index, error in enumerate(errors) if error is None] == [0, 1, 15]
    assert all(step.skipped == (step.error <= tolerance) for step in trace.steps if step.error is not None)
    with h2_cache(pipe, tau1=0.1, tau2=0.1) as trace:
        pipe(**run_kwargs(pipe, steps=4))
    assert {step.error for step in trace.steps} == {None}
    assert "error" not in trace.steps[0].to_json()


def plan_at(tolerance: float, **more: Any) -> str:
    pipe = flux_pipeline()
    with h2_cache(pipe, tau1=0, tau2=0, tolerance=tolerance) as trace:
        pipe(**run_kwargs(pipe, steps=16) | more)
    return plan_from_steps(trace.steps)


def test_the_more_is_tolerated_the_more_is_skipped() -> None:
    plans = [plan_at(tolerance) for tolerance in (1e-9, 1e-2, 1e-1, 1e9)]
    counts = [plan.count("S") for plan in plans]
    assert counts == sorted(counts) and counts[0] == 0 < counts[1] < counts[2]
    assert plans[-1] == "FF" + 13 * "S" + "F"  # two show how wrong a forecast is, and the last corrects


def test_all_passes_of_guidance_skip_the_same_steps() -> None:
    assert "/" not in plan_at(3e-2, **GUIDED)


@pytest.mark.parametrize("solver", ["own", "unipc", "heun"])
def test_a_tolerance_of_nothing_changes_no_bit(solver: str) -> None:
    pipe = flux_pipeline()
    with solving(pipe, solver):
        plain = pipe(**run_kwargs(pipe, steps=6)).images
        for tolerance in (0.0, 1e-12):
            with h2_cache(pipe, tau1=0, tau2=0, tolerance=tolerance) as trace:
                assert np.array_equal(pipe(**run_kwargs(pipe, steps=6)).images, plain)
            assert trace.summary.share == 1


def test_one_number_is_read_at_each_computed_step_and_none_at_a_skipped_one() -> None:
    pipe = flux_pipeline()
    with Operations() as plainly:
        pipe(**run_kwargs(pipe, steps=16))
    reads: list[tuple[StepRecord, int]] = []
    with (
        Operations() as cached,
        h2_cache(pipe, tau1=0, tau2=0, tolerance=5e-2, on_step=lambda step: reads.append((step, len(cached.read)))),
    ):
        pipe(**run_kwargs(pipe, steps=16))
    steps = [step for step, _ in reads]
    assert any(step.skipped for step in steps)
    assert all((step.structure.change, step.detail.change) == (None, None) for step in steps)
    timesteps = {number for step in steps for number in (step.sigma, step.timestep)}
    read = [number for number in cached.read if number not in plainly.read and number not in timesteps]
    computed = [step for step in steps if not step.skipped]
    assert len(read) == len(computed) - 2  # not for the first, and it is not needed after the last


@pytest.mark.parametrize("solver", ["unipc", "heun", "stochastic"])
def test_where_a_solver_does_not_just_add_the_velocity_nothing_is_made_good_for_and_less_is_skipped(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = flux_pipeline()
    if solver == "stochastic":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, stochastic_sampling=True)
    handed_on: list[bool] = []
    keep = VelocityHistory.keep

    def kept(self: VelocityHistory, velocity: torch.Tensor, *where: Any) -> torch.Tensor:
        found = keep(self, velocity, *where)
        handed_on.append(found is velocity)
        return found

    monkeypatch.setattr(VelocityHistory, "keep", kept)
    with (
        solving(pipe, "own" if solver == "stochastic" else solver),
        h2_cache(pipe, tau1=0, tau2=0, tolerance=0.5 if solver == "stochastic" else 5e-2) as trace,
    ):
        pipe(**run_kwargs(pipe, steps=16))
    assert trace.summary.skipped > 0 and all(handed_on)
    if solver == "unipc":  # which takes the same number of steps
        assert trace.summary.skipped < plan_at(5e-2).count("S")


def test_given_alone_it_leaves_no_threshold() -> None:
    pipe = flux_pipeline()
    for more in ({"tolerance": 5e-2}, {"config": CacheConfig(tolerance=5e-2)}):
        with h2_cache(pipe, **more) as trace:
            pipe(**run_kwargs(pipe, steps=16))
        assert plan_from_steps(trace.steps) == plan_at(5e-2)


def test_a_run_that_was_stopped_while_skipping_leaves_nothing_to_the_next() -> None:
    pipe, alone = flux_pipeline(), flux_pipeline()
    settings = {"tau1": 0, "tau2": 0, "tolerance": 1e9}
    with h2_cache(alone, **settings):
        wanted = alone(**run_kwargs(alone, steps=8)).images

    def stop(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 5:
            raise KeyboardInterrupt
        return kwargs

    with h2_cache(pipe, **settings):
        with pytest.raises(KeyboardInterrupt):
            pipe(**run_kwargs(pipe, steps=8), callback_on_step_end=stop)
        assert np.array_equal(pipe(**run_kwargs(pipe, steps=8)).images, wanted)


def planned(plan: str, tolerance: float, **more: Any) -> str:
    """The decisions of a plan and a tolerance together, for 8 steps."""
    pipe = flux_pipeline()
    with h2_cache(pipe, plan=plan, tolerance=tolerance) as trace:
        pipe(**run_kwargs(pipe, steps=8) | more)
    return plan_from_steps(trace.steps)


@pytest.mark.parametrize("more", ({}, GUIDED), ids=("plain", "guided"))
def test_a_plan_and_a_tolerance_skip_what_both_would(more: dict[str, Any]) -> None:
    plan = "FSFSSSFS"
    assert planned(plan, 1e9, **more) == plan
    assert planned(plan, 1e-9, **more) == "FSFFFFFS"  # nothing is known at its second step, nor of its last
    computed = planned(plan, 3e-2, **more)
    assert all(letter == "F" for letter, wanted in zip(computed, plan, strict=True) if wanted == "F")


def test_only_steps_that_the_plan_skips_are_held_against_the_tolerance() -> None:
    pipe, plan = flux_pipeline(), "FSFSSSFF"
    with h2_cache(pipe, plan=plan, tolerance=1e-9) as trace:
        pipe(**run_kwargs(pipe, steps=8))
    assert plan_from_steps(trace.steps) == "FSFFFFFF"
    assert [step.step for step in trace.steps if step.error is not None] == [3, 4, 5]


def test_a_plan_that_reuses_cannot_be_combined_with_a_tolerance() -> None:
    for plan, what in (("FDRSF", "D, R"), ("FSF/FFS", "several parts")):
        with pytest.raises(SettingError, match=f"^plan has {what}; with a tolerance, a plan has only F .* and S "):
            CacheConfig(plan=plan, tolerance=0.01)
