"""Pictures of a batch: each is decided by itself, and comes out as if made alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetPipeline, FluxKontextPipeline, FluxPipeline
from hypothesis import given as given_any
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, StepRecord, h2_cache
from h2gen.cache.batch import replaced, rows_of
from h2gen.cache.forecast import ResidualHistory
from tests.cache.drive import (
    assert_close,
    both_models,
    close,
    flux,
    latents,
    noise,
    position_ids,
    prompt,
    same,
    sigmas,
    thresholds,
)
from tests.cache.test_checks import Operations
from tests.small import flux2_klein_pipeline, flux_pipeline, run_kwargs

BATCH = 4
STEPS = 14
SPEEDS = (1.0, 0.3, 1.0, 2.0)
"""How far each picture moves from step to step: they are to be decided differently."""
PASSES = ("cond", "uncond")


def inputs(model: Any, batch: int = BATCH, steps: int = STEPS) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a pipeline gives to each pass, with one row per picture in each tensor; the last moves the fastest."""
    ids = position_ids(model, batch=batch)
    texts = [prompt(model, batch, 100 + 10 * turn) for turn in range(len(PASSES))]
    speeds = torch.tensor(SPEEDS[:batch])[:, None, None]
    end = noise(batch, 16, model.config.in_channels, seed=9)
    for sigma in sigmas(steps):
        shared = latents(model, sigma, batch=batch)
        shared["hidden_states"] = noise(batch, 16, model.config.in_channels, seed=8) + (1 - sigma) * speeds * end
        for name, text in zip(PASSES, texts, strict=True):
            yield name, shared | text | ids


def alone(given: dict[str, Any], row: int, kept: dict[int, Any]) -> dict[str, Any]:
    """One picture's part of them; always the same object for the same input."""

    def part(name: str, value: Any) -> Any:
        if value is None or (name.endswith("ids") and value.ndim == 2):
            return value
        if name in ("hidden_states", "timestep", "guidance"):
            return value[row : row + 1]
        return kept.setdefault(id(value), value[row : row + 1])

    return {name: part(name, value) for name, value in given.items()}


@torch.no_grad()
def run(model: Any, row: int | None = None, **kwargs: Any) -> list[torch.Tensor]:
    outputs, kept = [], {}
    for name, given in inputs(model, **kwargs):
        with model.cache_context(name):
            given = given if row is None else alone(given, row, kept)
            outputs.append(model(**given, return_dict=False)[0])
    return outputs


def assert_as_alone(got: list[StepRecord], wanted: list[StepRecord]) -> None:
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.step, ours.context, ours.blocks_run) == (theirs.step, theirs.context, theirs.blocks_run)
        for stage in ("structure", "detail"):
            one, other = getattr(ours, stage), getattr(theirs, stage)
            assert one.outcome == other.outcome and close(one.change, other.change, 1e-3), f"{ours} and {theirs}"


POLICIES: dict[str, dict[str, Any]] = {
    "paper": {},
    "guards": {"warmup_steps": 2, "max_consecutive": 2},
    "forecast": {"forecast": 1},
    "budget": {"budget": True, "forecast": 1},
    "checked": {"hierarchy": "checked", "max_detail_age": 3, "forecast": 1},
    "all at once": {"budget": True, "hierarchy": "checked", "max_detail_age": 4, "forecast": 1, "max_consecutive": 4},
    "stable": {"pfs": "stable"},
    "detail alone": {"tau1": 0.0},
    "plan": {"plan": "FFRDSFRSFRRFDS", "forecast": 1},
}
SCALES = [(0.4, 0.7, 1.0), (0.6, 0.6, 2.0)]


def settings(model: Any, policy: dict[str, Any], scale: tuple[float, float, float]) -> dict[str, Any]:
    tau = thresholds(model, *scale[:2])
    return {name: value * scale[2] for name, value in tau.items()} | policy


def by_pass(steps: list[StepRecord]) -> list[list[StepRecord]]:
    return [steps[start : start + BATCH] for start in range(0, len(steps), BATCH)]


def differing(steps: list[StepRecord], stage: str) -> int:
    """Passes in which some pictures run all blocks of a stage, and others do not."""
    return sum(len({getattr(step, stage).outcome.ran for step in each}) == 2 for each in by_pass(steps))


@pytest.mark.slow
@both_models
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_each_picture_is_decided_and_comes_out_as_it_does_alone(
    make: Any, policy: dict[str, Any], scale: tuple[float, float, float]
) -> None:
    model = make()
    config = settings(model, policy, scale)
    with h2_cache(model, **config) as together:
        got = run(model)
    for row in range(BATCH):
        with h2_cache(model, **config) as single:
            wanted = run(model, row)
        assert_close([output[row : row + 1] for output in got], wanted, 1e-3)
        assert_as_alone([step for step in together.steps if step.picture == row], single.steps)


@pytest.mark.slow
@both_models
def test_the_pictures_of_these_tests_are_decided_differently_in_each_way(make: Any) -> None:
    model, found = make(), Counter[str]()
    for policy in POLICIES.values():
        for scale in SCALES:
            with h2_cache(model, **settings(model, policy, scale)) as trace:
                run(model)
            found.update({stage: differing(trace.steps, stage) for stage in ("structure", "detail")})
            for each in by_pass(trace.steps):
                found["some guarded"] += 0 < sum(step.guarded for step in each) < BATCH
    assert min(found[name] for name in ("structure", "detail", "some guarded")) > 1, found


@both_models
@pytest.mark.parametrize("policy", ["paper", "all at once"])
def test_blocks_run_for_the_pictures_that_need_them_and_no_others(make: Any, policy: str) -> None:
    model, rows = make(), []
    given = settings(model, POLICIES[policy], SCALES[0])  # before the blocks are counted: it may run them to measure
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.attn.register_forward_pre_hook(
            lambda _module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
    with h2_cache(model, **given) as trace:
        run(model)
    assert sum(rows) == trace.summary.blocks_run < trace.summary.blocks_total
    assert len({*rows}) > 1


OURS = ("sub", "abs", "abs_", "mean", "avg_pool2d", "bmm", "add", "lerp", "cat", "stack", "index_select", "copy_")
"""Operations that the cache uses; the model's own counts of them are the same for one picture and for two."""


@pytest.mark.slow
@both_models
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "plan"])
def test_pictures_that_agree_cost_no_kernel_more_than_one_alone(make: Any, policy: str) -> None:
    model = make()
    config = settings(model, POLICIES[policy], SCALES[0])

    def count(copies: int) -> Counter[str]:
        kept: dict[int, Any] = {}

        def copied(name: str, value: Any) -> Any:
            if value is None or name.endswith("ids"):
                return value
            if name in ("hidden_states", "timestep", "guidance"):
                return value.repeat(copies, *[1] * (value.ndim - 1))
            return kept.setdefault(id(value), value.repeat(copies, *[1] * (value.ndim - 1)))

        calls = [(name, {key: copied(key, value) for key, value in given.items()}) for name, given in inputs(model, 1)]
        with torch.no_grad(), h2_cache(model, **config) as trace, Operations() as counted:
            for name, given in calls:
                with model.cache_context(name):
                    model(**given, return_dict=False)
        assert len(trace.steps) == copies * len(calls)
        return Counter({name: counted.counts[name] for name in OURS})

    assert count(3) == count(2)
    if not config.get("forecast"):  # whose one number per picture counts as a tensor from two pictures on
        assert count(2) == count(1)


def test_a_pass_of_many_pictures_waits_once_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reads = flux(), []
    for name in ("tolist", "item", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, original=original: reads.append(self.numel()) or original(self)
        )
    with h2_cache(model, **settings(model, {}, SCALES[0])) as trace:
        run(model)
    asked = [
        sum(getattr(step, stage).change is not None for step in each)
        for each in by_pass(trace.steps)
        for stage in ("structure", "detail")
    ]
    assert reads == [count for count in asked if count]
    assert {BATCH} < {*reads}


def test_a_picture_that_comes_out_as_nan_leaves_the_others_alone() -> None:
    model = flux()

    def call(batch: dict[str, Any]) -> list[torch.Tensor]:
        outputs = []
        for name, given in inputs(model):
            with model.cache_context(name):
                outputs.append(model(**(given | {"hidden_states": given["hidden_states"] * batch}))[0])
        return outputs

    spoilt = torch.tensor([1.0, torch.nan, 1.0, 1.0])[:, None, None]
    with torch.no_grad(), h2_cache(model, **settings(model, {}, SCALES[0])) as trace, pytest.warns(RuntimeWarning):
        got = call(spoilt)
    with torch.no_grad(), h2_cache(model, **settings(model, {}, SCALES[0])) as sound:
        wanted = call(torch.ones(BATCH, 1, 1))
    rest = [0, 2, 3]
    assert_close([output[rest] for output in got], [output[rest] for output in wanted], 1e-3)
    assert [step.full for step in trace.steps if step.picture == 1] == [True] * (len(trace.steps) // BATCH)
    for row in rest:
        pair = ([step for step in each.steps if step.picture == row] for each in (trace, sound))
        assert_as_alone(*pair)


CFG = {"negative_prompt": ["a dog"] * 3, "true_cfg_scale": 3.0}
PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (lambda: flux_pipeline(FluxPipeline), {}),
    "text with guidance": (lambda: flux_pipeline(FluxPipeline), CFG),
    "Kontext with guidance": (lambda: flux_pipeline(FluxKontextPipeline), CFG),
    "FLUX.2": (lambda: flux2_klein_pipeline(is_distilled=False), {"guidance_scale": 3.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"tau1": 0, "tau2": 0, "tolerance": 0.05},
        {"tau1": 0, "tau2": 0, "tolerance": 0.05, "plan": "FSFSSFSSSSFF"},
        {"forecast": 1, "tolerance": 0.05},
    ],
    ids=["paper", "tolerance", "plan and tolerance", "both"],
)
def test_pipelines_make_the_pictures_of_a_batch_as_they_make_each(name: str, policy: dict[str, Any]) -> None:
    make, more = PIPELINES[name]
    pipe, prompts = make(), ["a cat", "two dogs in a boat", "a red apple"]
    tau = {"tau1": 1.0, "tau2": 1.3} if name == "FLUX.2" else {"tau1": 0.35, "tau2": 0.53}

    def call(rows: list[int]) -> np.ndarray:
        given = run_kwargs(pipe, steps=12) | more | {"prompt": [prompts[row] for row in rows]}
        given["generator"] = [torch.Generator().manual_seed(7 + row) for row in rows]
        if "negative_prompt" in more:
            given["negative_prompt"] = ["a dog"] * len(rows)
        return pipe(**given).images

    config, rows = tau | policy, []
    pipe.transformer.single_transformer_blocks[0].attn.register_forward_pre_hook(
        lambda _module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    with h2_cache(pipe, **config) as together:
        pictures = call([0, 1, 2])
    assert sum(rows) == sum(not step.skipped for step in together.steps)
    for row in range(3):
        with h2_cache(pipe, **config) as single:
            (wanted,) = call([row])
        assert np.allclose(pictures[row], wanted, atol=2e-3)
        assert_as_alone([step for step in together.steps if step.picture == row], single.steps)


def test_a_step_may_be_skipped_for_some_pictures_of_a_batch_alone() -> None:
    pipe, rows = flux_pipeline(), []
    pipe.transformer.transformer_blocks[0].attn.register_forward_pre_hook(
        lambda _module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    for tolerance in (0.01, 0.02, 0.03, 0.05, 0.08):
        with h2_cache(pipe, tau1=0, tau2=0, tolerance=tolerance) as trace:
            pipe(**run_kwargs(pipe, steps=16) | {"prompt": ["a cat", "two dogs in a boat", "a red apple"]})
        assert sum(rows) == sum(not step.skipped for step in trace.steps)
        if {*rows} > {3}:
            break
        rows.clear()
    assert {*rows} > {3}


def test_with_a_controlnet_one_decision_is_made_for_the_batch() -> None:
    pipe = flux_pipeline(FluxControlNetPipeline)
    prompts = ["a cat", "two dogs in a boat"]
    with h2_cache(pipe, tau1=0.3, tau2=0.4, max_consecutive=3) as trace:
        pipe(**run_kwargs(pipe, steps=8) | {"prompt": prompts})
    for one, other in zip(trace.steps[::2], trace.steps[1::2], strict=True):
        assert (one.structure, one.detail, one.picture, other.picture) == (other.structure, other.detail, 0, 1)
    assert 0 < trace.summary.full < trace.summary.steps


def test_seconds_of_a_pass_are_shared_out_and_blocks_are_counted_for_each_picture() -> None:
    model = flux()
    with h2_cache(model, tau1=1e9, tau2=1e9) as trace:
        run(model)
    assert [step.picture for step in trace.steps] == [*range(BATCH)] * (STEPS * len(PASSES))
    for each in by_pass(trace.steps):
        assert len({step.seconds for step in each}) == len({step.blocks_run for step in each}) == 1
    assert "picture" not in trace.steps[0].to_json() and trace.steps[1].to_json()["picture"] == 1


def test_off_is_the_model_itself_for_a_batch_too() -> None:
    model = flux()
    plain = run(model)
    with h2_cache(model, CacheConfig(0, 0)):
        assert same(run(model), plain)


rows = st.lists(st.booleans(), min_size=5, max_size=5).map(lambda flags: [i for i, flag in enumerate(flags) if flag])


@given_any(rows.filter(bool), rows)
def test_rows_taken_out_and_put_back_are_the_whole(some: list[int], others: list[int]) -> None:
    whole = noise(5, 3, 2, seed=1)
    assert torch.equal(rows_of(whole, some), whole[some])
    others = [row for row in others if row not in some]
    parts = [(taken, whole[taken] + 1) for taken in (some, others) if taken]
    wanted = whole.clone()
    wanted[some + others] += 1
    assert torch.equal(replaced(whole, *parts), wanted)


@pytest.mark.parametrize("order", [0, 1])
@given_any(st.lists(rows, min_size=1, max_size=6), st.booleans(), rows.filter(bool))
def test_a_history_of_pictures_is_that_of_each(
    order: int, steps: list[list[int]], twice: bool, asked: list[int]
) -> None:
    """``twice`` is a solver that calls the model twice at each sigma."""
    together, each = ResidualHistory(order), [ResidualHistory(order) for _ in range(5)]
    for index, computed in enumerate([[0, 1, 2, 3, 4], *steps]):
        sigma = 1 - (index // (1 + twice)) / 10
        values = noise(5, 3, 2, seed=index), noise(5, 2, 2, seed=50 + index)
        if computed:
            together.keep(tuple(value[computed] for value in values), sigma, computed)
        for row in computed:
            each[row].keep(tuple(value[row : row + 1] for value in values), sigma)
        got = together.forecast(sigma - 0.03, asked)
        for at, row in enumerate(asked):
            assert together.has_line(row) == each[row].has_line(0)
            for ours, theirs in zip(got, each[row].forecast(sigma - 0.03), strict=True):
                assert torch.allclose(ours[at : at + 1], theirs, atol=1e-5)
