"""A plan says beforehand what each step does: first letters without a model, then models that follow them."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetPipeline, FluxImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, StepRecord, h2_cache
from h2gen.cache.policies.plan import check_plan, letter_of, plan_of, steps_in
from h2gen.errors import CacheError, SettingError
from tests.cache.drive import (
    STEPS,
    assert_close,
    assert_same_decisions,
    both_models,
    flux,
    latents,
    plan_from_steps,
    position_ids,
    prompt,
    run,
    run_reference,
    same,
    thresholds,
)
from tests.cache.reference import Rules, reference, sigmas_of
from tests.cache.test_checks import Operations, spy_on_the_checks
from tests.cache.test_memory import leave_out_others, still_alive, streams
from tests.small import flux2_klein_pipeline, flux_pipeline, run_kwargs

PLANS = ["FFRDSFRS", "FSSSSSSS", "FRRRFDDS", "FFCSRCDS", "FDSDSFSS"]
CFG = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
parts = st.text("FDCRS", max_size=12).map(lambda rest: f"F{rest}")


def letters(steps: list[StepRecord]) -> str:
    return "".join(letter_of(step.structure.outcome, step.detail.outcome) for step in steps)


@given(parts)
def test_blanks_commas_and_small_letters_are_taken(plan: str) -> None:
    assert check_plan(plan) == check_plan(" ".join(plan)) == check_plan(",".join(plan.lower())) == plan
    assert check_plan(check_plan(plan)) == plan


@given(parts)
def test_one_plan_holds_for_all_passes(plan: str) -> None:
    assert [plan_of(plan, turn) for turn in range(3)] == [plan] * 3
    assert steps_in(plan) == len(plan)


def test_passes_may_have_a_plan_each() -> None:
    assert [plan_of(check_plan("frr / fdr"), turn) for turn in range(3)] == ["FRR", "FDR", "FDR"]
    assert steps_in("FRR/FDR") == 3


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("FXR", "'X' at step 2"),
        ("RFF", "must be F"),
        ("S", "must be F"),
        ("FRR/FR", "3 steps for one pass and 2"),
        ("FRR/", "must be F"),
        ("/", "must be F"),
        ("F" * 60_000, "letters"),
        (7, "text"),
        (None, "text"),
    ],
)
def test_a_plan_that_means_nothing_is_refused_in_one_line(plan: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words) as error:
        CacheConfig(plan=plan)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_no_plan_is_none_and_a_plan_switches_the_cache_on() -> None:
    assert not CacheConfig(0, 0, plan="").enabled
    assert CacheConfig(0, 0, plan="F r").enabled
    assert CacheConfig(plan="F r").plan == "FR"


@both_models
@pytest.mark.parametrize("forecast", [0, 1])
@pytest.mark.parametrize("plan", PLANS)
def test_a_model_does_what_the_plan_says(make: Any, plan: str, forecast: int) -> None:
    model = make()
    wanted, decisions = run_reference(model, Rules(0, 0, plan=plan, forecast=forecast))
    with h2_cache(model, plan=plan, forecast=forecast) as trace:
        got = run(model)
    assert letters(trace.steps) == plan
    assert_same_decisions(trace.steps, decisions)
    assert_close(got, wanted)


@both_models
def test_the_blocks_of_a_plan_are_those_that_it_pays_for(make: Any) -> None:
    model = make(layers=3, single_layers=4)
    ran: list[int] = []
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.attn.register_forward_pre_hook(lambda *_: ran.append(1))
    with h2_cache(model, plan="FDCRSS") as trace:
        run(model, 6)
    assert [step.blocks_run for step in trace.steps] == [3 + 4, 3 + 1, 1 + 4, 1 + 1, 0, 0]
    assert len(ran) == trace.summary.blocks_run
    summary = trace.summary
    counts = summary.full, summary.detail_reused, summary.structure_reused, summary.all_reused, summary.skipped
    assert counts == (1, 1, 1, 1, 2)
    assert sum(counts) == summary.steps


@both_models
def test_a_plan_of_full_steps_is_the_model_itself(make: Any) -> None:
    model = make()
    plain = run(model, 4)
    with h2_cache(model, plan="FFFF"):
        assert same(run(model, 4), plain)


@both_models
@pytest.mark.parametrize("plan", ["FRSDFRSD", "FRSDFRSD/FSSFRDRS"])
@pytest.mark.parametrize("named", [True, False], ids=["named contexts", "no contexts"])
def test_the_passes_of_true_guidance_follow_their_plans(make: Any, plan: str, named: bool) -> None:
    model, passes = make(), ("cond", "uncond")
    wanted, decisions = run_reference(model, Rules(0, 0, plan=plan, forecast=1), passes=passes)
    with h2_cache(model, plan=plan, forecast=1) as trace:
        got = run(model, passes=passes, named=named)
    assert_same_decisions(trace.steps, decisions)
    assert_close(got, wanted)
    assert plan_from_steps(trace.steps) == plan


@pytest.mark.parametrize("forecast", [0, 1])
def test_the_decisions_of_a_run_can_be_repeated_without_checks(forecast: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = flux(), ("cond", "uncond")
    tau = thresholds(model, 0.4, 0.7)
    with h2_cache(model, **tau, forecast=forecast) as trace:
        decided = run(model, passes=passes)
    calls = spy_on_the_checks(monkeypatch)
    with h2_cache(model, plan=plan_from_steps(trace.steps), forecast=forecast) as again:
        assert same(run(model, passes=passes), decided)
    assert calls == []
    assert letters(again.steps) == letters(trace.steps)
    assert {stage.change for step in again.steps for stage in (step.structure, step.detail)} == {None}


@both_models
def test_a_plan_reads_nothing_out_of_tensors(make: Any) -> None:
    """Every read makes the device finish first; a timestep is read only on the CPU."""
    model = make()
    with Operations() as plainly:
        run(model, STEPS)
    with h2_cache(model, plan="FFRDSFRS", forecast=1) as trace, Operations() as planned:
        run(model, STEPS)
    timesteps = {number for step in trace.steps for number in (step.sigma, step.timestep)}
    assert {number for number in planned.read if number not in plainly.read} <= timesteps
    assert len(planned.read) <= len(plainly.read) + STEPS


def test_a_skipped_step_costs_one_kernel() -> None:
    model = flux()
    with h2_cache(model, plan="FFFSS"), Operations() as both:
        run(model, 5)
    with h2_cache(model, plan="FFF"), Operations() as full:
        run(model, 3)
    assert both.counts["addcmul"] == full.counts["addcmul"] + 2
    assert both.counts["scaled_dot_product_attention"] == full.counts["scaled_dot_product_attention"]
    assert both.counts["addmm"] == full.counts["addmm"]


@both_models
def test_a_plan_that_never_reuses_a_stage_keeps_nothing_of_it(make: Any) -> None:
    model = make()
    with Operations() as plainly:
        plain = run(model, 4)
    with h2_cache(model, plan="FFFF"), Operations() as full:
        assert same(run(model, 4), plain)
    assert full.counts == plainly.counts
    with h2_cache(model, plan="FFFD", forecast=1), Operations() as detail:
        run(model, 4)
    # The detail stage's, at each full step; and the three changes of the third, from which its line is judged.
    assert detail.counts["sub"] == plainly.counts["sub"] + 3 + 3


def test_thresholds_and_guards_have_no_say_in_a_plan() -> None:
    model = flux()
    with h2_cache(model, plan="FRSR"):
        wanted = run(model, 4)
    with h2_cache(model, tau1=1e-9, tau2=1e9, warmup_steps=3, max_consecutive=1, plan="FRSR") as trace:
        assert same(run(model, 4), wanted)
    assert letters(trace.steps) == "FRSR"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@both_models
def test_plans_work_in_half_precision(make: Any, dtype: torch.dtype) -> None:
    model, plan = make().to(dtype), "FFRDSFRS"
    wanted = run_reference(model, Rules(0, 0, plan=plan, forecast=1), dtype=dtype)[0]
    with h2_cache(model, plan=plan, forecast=1):
        got = run(model, dtype=dtype)
    assert {output.dtype for output in got} == {dtype}
    assert_close(got, wanted, 0.05)


def pipelines() -> list[tuple[Any, dict[str, Any], tuple[str, ...]]]:
    return [
        (flux_pipeline(), {}, ("cond",)),
        (flux_pipeline(FluxImg2ImgPipeline), CFG, ("cond", "uncond")),
        (flux2_klein_pipeline(is_distilled=False), {"guidance_scale": 3.0}, ("cond", "uncond")),
        (flux_pipeline(FluxControlNetPipeline), {}, ("cond",)),
    ]


@pytest.mark.parametrize("which", range(4), ids=["text", "image with guidance", "FLUX.2 with guidance", "ControlNet"])
@pytest.mark.parametrize("on", ["pipeline", "transformer"])
def test_pipelines_follow_a_plan(which: int, on: str) -> None:
    pipe, more, passes = pipelines()[which]
    rules = Rules(0, 0, plan="FFRSDR", forecast=1)
    pipe(**run_kwargs(pipe, steps=6) | more)
    with reference(pipe.transformer, rules, passes, sigmas=sigmas_of(pipe)):
        wanted = pipe(**run_kwargs(pipe, steps=6) | more).images
    target = pipe if on == "pipeline" else pipe.transformer
    with h2_cache(target, plan=rules.plan, forecast=1) as trace:
        got = pipe(**run_kwargs(pipe, steps=6) | more).images
        again = pipe(**run_kwargs(pipe, steps=6) | more).images
    assert np.allclose(got, wanted, atol=1e-3)
    assert np.array_equal(got, again)
    assert plan_from_steps(trace.steps[: len(trace.steps) // 2]) == rules.plan


@pytest.mark.parametrize("steps", [3, 5])
def test_a_plan_for_another_number_of_steps_is_refused_before_anything_runs(steps: int) -> None:
    pipe, ran = flux_pipeline(), []
    pipe.transformer.transformer_blocks[0].attn.register_forward_pre_hook(lambda *_: ran.append(1))
    with h2_cache(pipe, plan="FRRF"):
        with pytest.raises(CacheError, match=f"for 4 steps, and this run has {steps}"):
            pipe(**run_kwargs(pipe, steps=steps))
        assert ran == []
        pipe(**run_kwargs(pipe, steps=4))


@pytest.mark.parametrize("on", ["pipeline", "transformer"])
def test_a_plan_with_more_parts_than_the_run_has_passes_is_refused_at_the_second_step(on: str) -> None:
    pipe = flux_pipeline()
    with h2_cache(pipe if on == "pipeline" else pipe.transformer, plan="FRRF/FRFR") as trace:
        with pytest.raises(CacheError, match="2 parts, one per pass, but each step of this run has 1"):
            pipe(**run_kwargs(pipe, steps=4))
        assert len(trace.steps) == 1
        trace.clear()
        pipe(**run_kwargs(pipe, steps=4) | CFG)
    assert plan_from_steps(trace.steps) == "FRRF/FRFR"


def test_image_to_image_needs_a_plan_for_the_steps_that_run() -> None:
    """At a strength of 0.5 it runs half of its steps."""
    pipe = flux_pipeline(FluxImg2ImgPipeline)
    with h2_cache(pipe, plan="FRS") as trace:
        pipe(**run_kwargs(pipe, steps=6) | {"strength": 0.5})
        assert letters(trace.steps) == "FRS"
        with pytest.raises(CacheError, match="for 3 steps, and this run has 6"):
            pipe(**run_kwargs(pipe, steps=6))


def test_a_bare_transformer_that_runs_on_after_its_plan_is_told_so() -> None:
    model = flux()
    with h2_cache(model, plan="FRR"):
        run(model, 3)
        with pytest.raises(CacheError, match="for 3 steps, and this run has more"):
            run(model, 4)
        run(model, 3)


def test_where_the_shape_changes_in_mid_run_a_plan_computes_and_warns_once() -> None:
    model = flux()
    ids = position_ids(model)
    warned = pytest.warns(RuntimeWarning, match="shape")
    with torch.no_grad(), warned as caught, h2_cache(model, plan="FRRSRS") as trace:
        for batch, sigma in ((1, 1.0), (1, 0.8), (2, 0.6), (2, 0.4), (1, 0.2), (2, 0.1)):
            with model.cache_context("cond"):
                model(**(latents(model, sigma, batch=batch) | ids | prompt(model, batch)))
    assert letters([step for step in trace.steps if step.picture == 0]) == "FRFSFF"
    assert len([warning for warning in caught if "shape" in str(warning.message)]) == 1


def test_a_run_that_was_stopped_leaves_nothing_to_the_next() -> None:
    pipe, alone = flux_pipeline(), flux_pipeline()
    with h2_cache(alone, plan="FFRS", forecast=1):
        wanted = alone(**run_kwargs(alone, steps=4)).images

    def stop(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise KeyboardInterrupt
        return kwargs

    with h2_cache(pipe, plan="FFRS", forecast=1):
        with pytest.raises(KeyboardInterrupt):
            pipe(**run_kwargs(pipe, steps=4), callback_on_step_end=stop)
        assert np.array_equal(pipe(**run_kwargs(pipe, steps=4)).images, wanted)


def test_memory_of_a_plan_is_bounded_and_free_once_a_run_is_over() -> None:
    pipe, counts, kept = flux_pipeline(), [], []
    leave_out_others()

    def look(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        gc.collect()
        counts.append(len(streams()))
        kept.extend(streams())
        return kwargs

    with h2_cache(pipe, plan="FFFFRS", forecast=1):
        pipe(**run_kwargs(pipe, steps=6), callback_on_step_end=look)
        assert counts[0] < counts[1] == counts[2] == counts[3] == counts[4]
        assert still_alive(kept) == 0


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_skipped_step_returns_what_the_model_returns(return_dict: bool) -> None:
    model = flux()
    same_inputs = position_ids(model) | prompt(model)
    with torch.no_grad(), h2_cache(model, plan="FS"):
        first, second = (
            model(**(latents(model, sigma) | same_inputs), return_dict=return_dict) for sigma in (1.0, 0.5)
        )
    assert type(first) is type(second)
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CacheConfig(0.1, 0.2), "tau1 0.1, tau2 0.2"),
        (CacheConfig(0, 0), "tau1 0, tau2 0"),
        (CacheConfig(0, 0, tolerance=0.02), "tolerance 0.02"),
        (CacheConfig(0.1, 0.2, plan="FFRS", forecast=1), "plan FFRS, forecast 1"),  # thresholds have no say
        (CacheConfig(0, 0, plan="FFSS", tolerance=0.02), "plan FFSS, tolerance 0.02"),
        (CacheConfig(0.1, 0.2, plan="FFSS", tolerance=0.02), "plan FFSS, tau1 0.1, tau2 0.2, tolerance 0.02"),
        (CacheConfig(plan="F" + 99 * "S"), f"plan F{59 * 'S'}..."),
    ],
    ids=str,
)
def test_settings_are_named_if_they_decide(config: CacheConfig, words: str) -> None:
    assert config.words == words
