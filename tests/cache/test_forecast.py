"""Forecasts are straight lines in sigma through what was computed last: first without a model, then with one."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetPipeline, FluxImg2ImgPipeline, FluxKontextPipeline
from hypothesis import given
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, h2_cache
from h2gen.cache.forecast import FARTHEST, ResidualHistory, extrapolation
from h2gen.cache.progress import progress
from h2gen.errors import SettingError
from tests.cache.drive import (
    assert_close,
    assert_same_decisions,
    both_models,
    flux,
    kinds,
    noise,
    run,
    run_reference,
    same,
    thresholds,
)
from tests.cache.reference import Rules, reference
from tests.cache.test_checks import Operations
from tests.cache.test_memory import leave_out_others, still_alive, streams
from tests.small import flux_pipeline, run_kwargs

sigmas = st.floats(0, 1).filter(lambda sigma: sigma == 0 or sigma > 1e-3)


def line(sigma: float) -> tuple[torch.Tensor, ...]:
    """Two tensors that are linear in sigma."""
    start, slope = noise(1, 5, 4, seed=1), noise(1, 5, 4, seed=2)
    return start + sigma * slope, 3 * start[:, :2] - sigma * slope[:, :2]


@given(sigmas, sigmas, st.floats(0, FARTHEST))
def test_what_is_linear_in_sigma_is_forecast_exactly_near_by(older: float, newer: float, ahead: float) -> None:
    if abs(older - newer) < 0.05:
        return
    sigma = newer + ahead * (newer - older)
    history = ResidualHistory(1)
    history.keep(line(older), older)
    history.keep(line(newer), newer)
    for got, wanted in zip(history.forecast(sigma), line(sigma), strict=True):
        assert torch.allclose(got, wanted, atol=1e-4)


def test_a_line_is_not_followed_for_ever() -> None:
    history = ResidualHistory(1)
    history.keep(line(0.9), 0.9)
    history.keep(line(0.8), 0.8)
    for got, wanted in zip(history.forecast(0.1), line(0.8 - FARTHEST * 0.1), strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((0, 4, 8), 8 + 4 / 2),  # on the line
        ((0, 4, 6), 6 + 2 / 2),  # half of it is enough
        ((0, 4, 5), 5 + 1 / 4),
        ((0, 4, 3), 3),  # turned round
        ((0, 4, 20), 20 + 16 / 2),
        ((4, 4, 5), 5),  # no line to follow
    ],
    ids=str,
)
@pytest.mark.parametrize("gaps", [(0.1, 0.1), (0.05, 0.2)], ids=str)
def test_an_extrapolation_is_shortened_if_the_last_line_was_followed_less(
    values: tuple[float, ...], wanted: float, gaps: tuple[float, float]
) -> None:
    """``values`` with even gaps; with other ones the line through the first two is as far as the third is."""
    (first, second, third), (before, last) = values, gaps
    first = second - (second - first) * before / last
    history, sigma = ResidualHistory(1), 0.9
    for value, gap in ((first, 0), (second, before), (third, last)):
        history.keep((torch.full((1, 5, 4), float(value)),), sigma := sigma - gap)
    (got,) = history.forecast(sigma - 2 * last)
    assert torch.allclose(got, torch.full_like(got, wanted), atol=1e-4)


def test_only_the_pictures_own_tokens_say_how_far() -> None:
    history, own = ResidualHistory(1), torch.tensor([1.0, 1.0, 0.0])
    for number, others, sigma in ((0.0, 5.0, 0.9), (4.0, -50.0, 0.8), (5.0, 500.0, 0.7)):
        parts = ((2, others), (2, number), (1, others))  # text, picture, a reference picture
        history.keep((torch.cat([torch.full((1, count, 4), at) for count, at in parts], dim=1),), sigma, own=own)
    assert torch.allclose(history.forecast(0.6)[0][:, 2:4], torch.full((1, 2, 4), 5.25), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_residuals_in_half_precision_are_summed_in_single(dtype: torch.dtype) -> None:
    older, newer, value = (torch.full((2, 4096, 64), at, dtype=dtype) for at in (0, 4000, 5000))
    assert torch.allclose(progress(value, newer, older, None), torch.full((2,), 0.25), atol=1e-2)


def test_order_0_reuses_what_was_computed_last_itself() -> None:
    history = ResidualHistory(0)
    history.keep(line(0.9), 0.9)
    history.keep(line(0.8), 0.8)
    last = line(0.7)
    history.keep(last, 0.7)
    assert all(got is kept for got, kept in zip(history.forecast(0.2), last, strict=True))


def test_one_value_alone_makes_no_line() -> None:
    history = ResidualHistory(1)
    only = line(0.7)
    history.keep(only, 0.7)
    assert all(got is kept for got, kept in zip(history.forecast(0.2), only, strict=True))


@pytest.mark.parametrize("order", [0, 1])
def test_no_more_is_kept_than_the_order_needs(order: int) -> None:
    history = ResidualHistory(order)
    assert not history
    for step in range(5):
        history.keep(line(1 - step / 5), 1 - step / 5)
        assert len(history) == min(step + 1, order + 1)


def test_a_second_value_at_one_sigma_takes_the_place_of_the_first() -> None:
    """As from a solver with two calls per step: a line through both would be vertical."""
    history = ResidualHistory(1)
    history.keep(line(0.9), 0.9)
    history.keep((line(0.5)[0] + 7, line(0.5)[1]), 0.5)
    history.keep(line(0.5), 0.5)
    assert torch.allclose(history.forecast(0.3)[0], line(0.3)[0], atol=1e-5)


@given(sigmas, sigmas, sigmas)
def test_a_line_leads_as_far_as_sigma_and_never_beyond_the_limit(older: float, newer: float, sigma: float) -> None:
    if abs(older - newer) < 1e-6:  # rounding alone would decide
        return
    assert extrapolation(older, newer, newer) == 0
    assert extrapolation(older, newer, sigma) <= FARTHEST
    assert extrapolation(older, newer, 1.25 * newer - 0.25 * older) == pytest.approx(0.25)
    assert extrapolation(older, newer, 2 * newer - older) == FARTHEST


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_forecast_in_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    old, new = (noise(1, 64, 32, seed=seed).to(dtype) for seed in (1, 2))
    history = ResidualHistory(1)
    history.keep((old,), 0.9)
    history.keep((new,), 0.8)
    (got,) = history.forecast(0.75)
    assert got.dtype == dtype
    exact = new.double() + 0.5 * (new.double() - old.double())
    assert (got.double() - exact).abs().le(exact.abs() * torch.finfo(dtype).eps + 1e-6).all()


def test_what_is_kept_is_not_written_to() -> None:
    history = ResidualHistory(1)
    history.keep(line(0.9), 0.9)
    history.keep(line(0.8), 0.8)
    for value in history.forecast(0.77):
        value.zero_()
    assert torch.allclose(history.forecast(0.77)[0], line(0.77)[0], atol=1e-5)


@both_models
@pytest.mark.parametrize("shares", [(0.4, 0.8), (None, 0.6), (0.2, 0.4)], ids=str)
@pytest.mark.parametrize("passes", [("cond",), ("cond", "uncond")], ids=["no guidance", "true guidance"])
def test_stages_add_the_line_through_their_last_two_residuals(
    make: Any, shares: tuple[float | None, float], passes: tuple[str, ...]
) -> None:
    model = make()
    rules = Rules(**thresholds(model, *shares), forecast=1)
    wanted, decisions = run_reference(model, rules, passes=passes)
    with h2_cache(model, tau1=rules.tau1, tau2=rules.tau2, forecast=1) as trace:
        got = run(model, passes=passes)
    assert_same_decisions(trace.steps, decisions, rel=1e-3)
    assert_close(got, wanted)
    assert len(kinds(decisions)) > 1


def test_a_forecast_is_no_reuse() -> None:
    model = flux()
    with h2_cache(model, plan="FFRFFRRR"):
        reused = run(model)
    with h2_cache(model, plan="FFRFFRRR", forecast=1):
        got = run(model)
    assert not torch.equal(got[2], reused[2])


def test_what_is_learned_costs_a_few_sums_at_a_computed_step_and_nothing_without_a_forecast() -> None:
    """Six per stage: three changes and their norms. Nothing is read (see also ``test_plan``)."""
    counts = []
    for forecast in (0, 1):
        model = flux()
        with h2_cache(model, plan="FFFR", forecast=forecast), Operations() as seen:
            run(model, 4)
        counts.append(seen.counts)
    plainly, cached = counts
    assert plainly["linalg_vector_norm"] == 0
    assert cached["linalg_vector_norm"] == 2 * 3
    assert cached["sub"] - plainly["sub"] == 2 * 3
    assert cached["lerp"] - plainly["lerp"] == 3  # two streams of the structure, one of the detail


def test_until_a_stage_was_computed_twice_a_forecast_is_a_reuse() -> None:
    model = flux()
    with h2_cache(model, tau1=1e9, tau2=1e9) as trace:
        reused = run(model, 4)
    with h2_cache(model, tau1=1e9, tau2=1e9, forecast=1):
        assert same(run(model, 4), reused)
    assert [step.full for step in trace.steps] == [True, False, False, False]


@pytest.mark.parametrize("value", [2, -1, 0.5, True, "1", None])
def test_an_order_that_there_is_not_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match="forecast"):
        CacheConfig(forecast=value)


def test_at_most_two_residuals_a_stage_are_kept_and_none_once_a_run_is_over() -> None:
    counts: dict[int, list[int]] = {}
    leave_out_others()
    for order in (0, 1):
        pipe, kept = flux_pipeline(), []
        seen = counts.setdefault(order, [])

        def look(_pipe: Any, _step: int, _t: Any, kwargs: dict[str, Any], seen: Any = seen, kept: Any = kept) -> Any:
            gc.collect()
            seen.append(len(streams()))
            kept.extend(streams())
            return kwargs

        with h2_cache(pipe, tau1=1e-9, tau2=1e-9, forecast=order):
            pipe(**run_kwargs(pipe, steps=5), callback_on_step_end=look)
            assert still_alive(kept) == 0
    assert len(set(counts[0])) == 1
    assert counts[1][0] == counts[0][0]
    # The structure stage keeps both its streams a second time, the detail stage its image stream.
    assert counts[1][1:] == [counts[0][0] + 3] * 4


@pytest.mark.parametrize("cls", [FluxImg2ImgPipeline, FluxControlNetPipeline, FluxKontextPipeline])
@pytest.mark.parametrize("guided", [False, True], ids=["no guidance", "true guidance"])
def test_pipelines_forecast_as_the_straight_line_does(cls: type, guided: bool) -> None:
    pipe = flux_pipeline(cls)
    more: dict[str, Any] = {"negative_prompt": "a dog", "true_cfg_scale": 3.0} if guided else {}
    if cls is FluxImg2ImgPipeline:
        more["strength"] = 0.7  # which leaves out the first steps of the schedule
    passes = ("cond", "uncond") if guided else ("cond",)
    rules = Rules(0.3, 0.4, forecast=1, max_consecutive=2)
    with reference(pipe.transformer, rules, passes) as decisions:
        wanted = pipe(**run_kwargs(pipe, steps=8) | more).images
    with h2_cache(pipe, tau1=0.3, tau2=0.4, forecast=1, max_consecutive=2) as trace:
        got = pipe(**run_kwargs(pipe, steps=8) | more).images
    assert_same_decisions(trace.steps, decisions, rel=1e-3)
    assert np.allclose(got, wanted, atol=1e-3)
    assert len(kinds(decisions)) > 1


def test_an_interrupted_run_leaves_no_line_to_the_next() -> None:
    pipe, alone = flux_pipeline(), flux_pipeline()
    settings = {"tau1": 0.35, "tau2": 0.53, "forecast": 1, "max_consecutive": 2}
    with h2_cache(alone, **settings):
        wanted = alone(**run_kwargs(alone, steps=6)).images

    def stop(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise KeyboardInterrupt
        return kwargs

    with h2_cache(pipe, **settings):
        with pytest.raises(KeyboardInterrupt):
            pipe(**run_kwargs(pipe, steps=6), callback_on_step_end=stop)
        assert np.array_equal(pipe(**run_kwargs(pipe, steps=6)).images, wanted)
        assert np.array_equal(pipe(**run_kwargs(pipe, steps=6)).images, wanted)


def test_the_line_is_drawn_in_the_schedules_sigma_and_not_in_the_rounded_one_of_the_model() -> None:
    """In bfloat16 the model gets 0.8984 for 0.9: if the pipeline is known, the exact sigma is used."""
    seen: list[float] = []
    pipe = flux_pipeline().to(torch.bfloat16)
    original = ResidualHistory.keep
    with pytest.MonkeyPatch.context() as patch, h2_cache(pipe, plan="FFRFR", forecast=1):
        patch.setattr(ResidualHistory, "keep", lambda self, *given: seen.append(given[1]) or original(self, *given))
        pipe(**run_kwargs(pipe, steps=5))
    sigmas = [timestep / 1000 for timestep in pipe.scheduler.timesteps.tolist()]
    assert seen == [sigma for sigma in (sigmas[0], sigmas[1], sigmas[3]) for _ in range(2)]
