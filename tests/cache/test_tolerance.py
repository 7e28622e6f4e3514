"""Steps are skipped within a tolerance, and corrected: numbers first, then velocities, then whole pipelines."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, StepRecord, h2_cache
from h2gen.cache.policies.tolerance import CurvatureEstimate
from h2gen.cache.velocity import VelocityHistory, curvatures
from h2gen.generation.solvers import solving
from tests.cache.drive import assert_same_decisions, noise, plan_from_steps
from tests.cache.reference import Rules, reference, sigmas_of
from tests.cache.test_checks import Operations
from tests.small import flux2_klein_pipeline, flux_pipeline, run_kwargs

GUIDED = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
SIGMAS = [1 - step / 10 for step in range(10)]

# Numbers


def test_a_displacement_is_the_integral_of_how_far_a_parabola_is_from_its_line() -> None:
    ways = np.linspace(0, 0.4, 100_001)
    between, beyond = CurvatureEstimate(0.9, 3.0), CurvatureEstimate(0.9, 3.0, 0.1)
    assert between.displacement(0.5) == pytest.approx(np.trapezoid(3.0 * ways * (0.4 - ways), ways), rel=1e-6)
    assert beyond.displacement(0.5) == pytest.approx(np.trapezoid(3.0 * ways * (0.1 + ways), ways), rel=1e-6)


@given(st.floats(0, 5), st.one_of(st.none(), st.floats(0, 1)), st.floats(0, 1), st.floats(0, 1))
def test_the_farther_the_larger(curvature: float, before: float | None, one: float, other: float) -> None:
    estimate = CurvatureEstimate(1.0, curvature, before)
    assert estimate.displacement(max(one, other)) <= estimate.displacement(min(one, other))


# Velocities


def parabola(sigma: float) -> torch.Tensor:
    """A velocity whose curvature in sigma is 2 everywhere, relative to its size at sigma 0.5."""
    return torch.ones(1, 3, 4) * (1 + 2 * (sigma - 0.5) ** 2)


@given(st.permutations(range(8)).map(lambda order: sorted(order[:3], reverse=True)))
def test_what_is_linear_is_forecast_exactly_however_far(places: list[int]) -> None:
    start, slope = noise(1, 5, 4, seed=1), noise(1, 5, 4, seed=2)
    older, newer, sigma = (place / 8 for place in places)
    velocities = VelocityHistory()
    assert not velocities
    for at in (older, newer):
        velocities.keep(start + at * slope, at)
    assert torch.allclose(velocities.forecast(sigma), start + sigma * slope, atol=1e-4)


def test_one_velocity_alone_is_the_forecast_itself() -> None:
    velocities, only = VelocityHistory(), noise(1, 5, 4, seed=1)
    velocities.keep(only, 0.9)
    assert velocities.forecast(0.3) is only


def test_the_curvature_is_that_of_the_velocity_and_is_read_once() -> None:
    velocities = VelocityHistory(measured=True)
    for sigma in (0.9, 0.8, 0.5):
        assert curvatures([velocities]) == {}
        velocities.keep(parabola(sigma), sigma)
    assert curvatures([VelocityHistory(), velocities]) == {1: pytest.approx(2.0, rel=1e-4)}
    assert curvatures([velocities]) == {}


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


@given(st.sets(st.integers(1, 8)))
def test_what_was_skipped_is_made_good_for_as_if_it_had_lain_on_the_line_between_computed_steps(some: set[int]) -> None:
    computed = sorted({0, 9, *some})
    table = {SIGMAS[step]: parabola(SIGMAS[step]) for step in computed}
    for first, last in pairwise(computed):
        for step in range(first + 1, last):
            share = (step - first) / (last - first)
            table[SIGMAS[step]] = torch.lerp(table[SIGMAS[first]], table[SIGMAS[last]], share)
    wanted = moved(set(range(10)), lambda sigma: table[sigma])
    assert torch.allclose(moved(set(computed), parabola), wanted, atol=1e-5)


def test_making_good_brings_the_picture_nearer_to_where_all_steps_bring_it() -> None:
    every = moved(set(range(10)), parabola)
    some = {0, 1, 4, 9}
    velocities, alone = VelocityHistory(), torch.zeros_like(every)
    for step, (sigma, after) in enumerate(pairwise([*SIGMAS, 0.0])):
        used = velocities.keep(parabola(sigma), sigma) if step in some else velocities.forecast(sigma)
        alone += (after - sigma) * used
    assert (moved(some, parabola) - every).abs().max() < 0.5 * (alone - every).abs().max()


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
    assert [index for index, error in enumerate(errors) if error is None] == [0, 1, 2, 15]
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
    assert plans[-1] == "FFF" + 12 * "S" + "F"  # three give a curvature, and the last corrects


def test_all_passes_of_guidance_skip_the_same_steps() -> None:
    assert "/" not in plan_at(3e-2, **GUIDED)


def test_a_tolerance_of_nothing_changes_no_bit() -> None:
    pipe = flux_pipeline()
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
    assert len(read) == len(computed) - 3  # not for the first two, and it is not needed after the last


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
    for settings in ({"tolerance": 5e-2}, {"config": CacheConfig(tolerance=5e-2)}):
        with h2_cache(pipe, **settings) as trace:
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
