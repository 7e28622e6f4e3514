"""The matrix: every pipeline of every family times everything that the cache can be asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from h2gen.cache import StepRecord, Trace, h2_cache
from h2gen.cache.policies.plan import letter_of
from tests.cache.drive import between
from tests.matrix.drive import asked, attentions, counted, distance, larger, lora, made, pipeline_of, plain, steps_of
from tests.matrix.rows import ROWS, Row
from tests.small import mask, picture

pytestmark = pytest.mark.no_cover

NEVER = {"tau1": 1e-12, "tau2": 1e-12}
ALWAYS = {"tau1": 1e9, "tau2": 1e9}
NEAR = 0.3
"""How far a cached picture may be from the uncached one, as a share of how far another seed's is."""


def rows(where: Callable[[Row], bool] = lambda _: True) -> pytest.MarkDecorator:
    """A test of the rows that meet a condition. The long tail is slow."""
    chosen = [row for row in ROWS if where(row)]
    return pytest.mark.parametrize(
        "row", [pytest.param(row, id=str(row), marks=() if row.quick else pytest.mark.slow) for row in chosen]
    )


@contextmanager
def cached(row: Row, **settings: Any) -> Iterator[Trace]:
    """The cache on a row's pipeline. Its trace must tell of no block that did not run, and of all that did."""
    pipe = pipeline_of(row)
    plain(row)  # before there is a cache
    with counted(pipe.transformer) as blocks, h2_cache(pipe, **settings) as trace:
        yield trace
    assert sum(step.blocks_run for step in trace.steps) == pytest.approx(blocks(), rel=1e-4)  # shares are rounded


@functools.cache
def natural(row: Row, guided: bool = False) -> dict[str, float]:
    """Thresholds at the middle of a row's changes."""
    with h2_cache(pipeline_of(row), **NEVER) as trace:
        made(row, **(row.guided if guided else {}))
    changes = [[stage.change for stage in stages if stage.change is not None] for stages in _stages(trace)]
    return {name: between(sorted(each), 0.5) for name, each in zip(("tau1", "tau2"), changes, strict=True)}


def _stages(trace: Trace) -> tuple[list[Any], list[Any]]:
    return [step.structure for step in trace.steps], [step.detail for step in trace.steps]


@functools.cache
def of_another_seed(row: Row) -> float:
    """How far another seed's picture is: what "near" is measured by."""
    return distance(plain(row), made(row, seed=9))


def letters(steps: list[StepRecord], context: str = "cond") -> str:
    return "".join(letter_of(step.structure.outcome, step.detail.outcome) for step in steps if step.context == context)


def is_near(row: Row, trace: Trace, got: np.ndarray, wanted: np.ndarray | None = None) -> None:
    """Fewer blocks, another picture, but a near one."""
    wanted = plain(row) if wanted is None else wanted
    assert trace.summary.blocks_run < trace.summary.blocks_total
    assert 0 < distance(got, wanted) < NEAR * of_another_seed(row)


def plan_for(row: Row, wanted: str = "FFSFDF") -> str:
    """A plan of the steps that a row really runs; one that may reuse only what its pipeline lets it."""
    plan = wanted[: steps_of(row)]
    plan = plan if row.forecasts else plan.replace("S", "R")
    # The pass that keeps keys and values has other shapes than all later ones.
    return "FFF" + plan[3:] if "KV" in row.pipeline else plan


@rows()
def test_off_is_plain_diffusers_bit_for_bit(row: Row) -> None:
    with cached(row, tau1=0, tau2=0) as trace:
        assert np.array_equal(made(row), plain(row))
    assert [step.full for step in trace.steps] == [True] * steps_of(row)
    assert np.array_equal(made(row), plain(row))


@rows()
def test_thresholds_that_are_never_met_change_nothing(row: Row) -> None:
    with cached(row, **NEVER) as trace:
        assert np.array_equal(made(row), plain(row))
    assert [step.full for step in trace.steps] == [True] * steps_of(row)
    measured = [step.step for step in trace.steps if step.structure.change and step.detail.change]
    assert measured == [*range(2 if "KV" in row.pipeline else 1, steps_of(row))]


@rows()
def test_thresholds_that_are_met_reuse_blocks(row: Row) -> None:
    with cached(row, **natural(row)) as trace:
        got = made(row)
    is_near(row, trace, got)


@rows()
def test_guards_know_the_steps_that_run(row: Row) -> None:
    """At a strength below 1 the schedule begins in its midst."""
    with cached(row, **ALWAYS, warmup_steps=1, final_steps=2) as trace:
        made(row)
    last = steps_of(row) - 2
    full = [step.step for step in trace.steps if step.full and step.step not in (1, 2)]
    assert full == [0, last, last + 1]
    assert [step.step for step in trace.steps if step.detail.outcome == "guarded"] == [0, last, last + 1]


@rows()
def test_a_plan_is_followed_letter_by_letter(row: Row) -> None:
    plan = plan_for(row)
    with cached(row, plan=plan) as trace:
        got = made(row)
    assert letters(trace.steps) == plan
    is_near(row, trace, got)
    with cached(row, plan="F" * len(plan)):
        assert np.array_equal(made(row), plain(row))


@rows(lambda row: row.forecasts)
def test_a_tolerance_skips_whole_steps(row: Row) -> None:
    with cached(row, tolerance=1e-12) as trace:
        assert np.array_equal(made(row), plain(row))
    assert [step.step for step in trace.steps if step.error is not None] == [*range(2, steps_of(row) - 1)][
        "KV" in row.pipeline :
    ]
    with cached(row, tolerance=1.0) as trace:
        got = made(row)
    assert trace.steps[-1].full and trace.summary.skipped > 0
    is_near(row, trace, got)


@rows(lambda row: not row.forecasts)
def test_forecasts_are_off_where_a_model_has_none(row: Row) -> None:
    for settings in ({"tolerance": 1.0}, {"plan": "FFFSFF"}, {"plan": "FFFFSF", "tolerance": 1.0}):
        with pytest.warns(RuntimeWarning, match="without effect on this model"), cached(row, **settings) as trace:
            assert np.array_equal(made(row), plain(row))
        assert [step.full for step in trace.steps] == [True] * steps_of(row)


@rows(lambda row: row.forecasts)
def test_a_plan_and_a_tolerance_skip_what_both_allow(row: Row) -> None:
    plan = "FFFFSF" if "KV" in row.pipeline else "FFFSFF"[: steps_of(row)]
    with cached(row, plan=plan, tolerance=1e-12) as trace:
        assert np.array_equal(made(row), plain(row))
    assert trace.summary.skipped == 0
    with cached(row, plan=plan, tolerance=1.0) as trace:
        got = made(row)
    assert letters(trace.steps) == plan
    is_near(row, trace, got)


@rows(lambda row: row.by_hand)
def test_sigmas_given_by_hand_are_the_schedule(row: Row) -> None:
    by_hand = {"sigmas": [1.0, 0.85, 0.6, 0.45, 0.2, 0.1]}
    wanted = made(row, **by_hand)
    assert not np.array_equal(wanted, plain(row))
    with cached(row, **({"tolerance": 1e-12} if row.forecasts else NEVER)) as trace:
        assert np.array_equal(made(row, **by_hand), wanted)
    assert [step.sigma for step in trace.steps] == pytest.approx(
        pipeline_of(row).scheduler.sigmas[-1 - steps_of(row) : -1].tolist()
    )
    plan = plan_for(row)
    with cached(row, plan=plan) as trace:
        got = made(row, **by_hand)
    assert letters(trace.steps) == plan
    is_near(row, trace, got, wanted)


BATCH = {"prompt": ["a cat", "a blue car"]}


def batch_of(row: Row) -> Mapping[str, Any]:
    two = {"generator": [torch.Generator().manual_seed(seed) for seed in (7, 8)]}
    if any(word in row.pipeline for word in ("Img2Img", "Inpaint", "Fill")):
        two["image"] = [picture(), picture()]  # each encoded with its own generator, as alone
    if "Fill" in row.pipeline:
        two["mask_image"] = [mask(), mask()]
    one = {"prompt": BATCH["prompt"][0], "num_images_per_prompt": 2} if row.one_prompt else {}
    return BATCH | two | one


@rows(lambda row: row.batch)
def test_each_picture_of_a_batch_is_as_alone(row: Row) -> None:
    tau, alone, decided = natural(row), [], []
    prompts = BATCH["prompt"][:1] * 2 if row.one_prompt else BATCH["prompt"]
    for prompt, seed in zip(prompts, (7, 8), strict=True):
        with cached(row, **tau) as trace:
            alone.append(made(row, prompt=prompt, seed=seed))
        decided.append(letters(trace.steps))
    with cached(row, **tau) as trace:
        together = made(row, **batch_of(row))
    assert trace.summary.blocks_run < trace.summary.blocks_total
    got = [letters([step for step in trace.steps if step.picture == number]) for number in range(2)]
    if not row.one_decision:
        assert got == decided
        assert np.allclose(together, np.concatenate(alone), atol=1e-3)
        return
    assert got[0] == got[1]
    with cached(row, tau1=0, tau2=0):
        together = made(row, **batch_of(row))
    alone = [made(row, prompt=prompt, seed=seed) for prompt, seed in zip(prompts, (7, 8), strict=True)]
    assert np.allclose(together, np.concatenate(alone), atol=1e-3)


@rows(lambda row: bool(row.guided))
def test_true_guidance_has_two_passes_of_its_own(row: Row) -> None:
    wanted, tau = plain(row, guided=True), natural(row, guided=True)
    assert not np.array_equal(wanted, plain(row))
    for off in ({"tau1": 0, "tau2": 0}, NEVER, {"tolerance": 1e-12}):
        with cached(row, **off) as trace:
            assert np.array_equal(made(row, **row.guided), wanted)
        assert [step.context for step in trace.steps] == ["cond", "uncond"] * steps_of(row)
        assert [step.step for step in trace.steps] == [step for step in range(steps_of(row)) for _ in range(2)]
    with cached(row, **tau) as trace:
        is_near(row, trace, made(row, **row.guided), wanted)
    with cached(row, tolerance=1.0) as trace:
        is_near(row, trace, made(row, **row.guided), wanted)
    skipped = [step.step for step in trace.steps if step.skipped]
    assert skipped and skipped[0::2] == skipped[1::2]
    parts = plan_for(row), "F" * steps_of(row)
    with cached(row, plan="/".join(parts)) as trace:
        made(row, **row.guided)
    assert (letters(trace.steps), letters(trace.steps, "uncond")) == parts


class Stopped(BaseException):
    """What stops a run; like Ctrl-C, no Exception."""


def raises(_pipe: Any, step: int, _time: Any, kwargs: Any) -> Any:
    if step == 1:
        raise Stopped
    return kwargs


def interrupts(pipe: Any, step: int, _time: Any, kwargs: Any) -> Any:
    if step == 1:
        pipe._interrupt = True
    return kwargs


@contextmanager
def stopped_in_a_block(row: Row) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Stopped

    hook = attentions(pipeline_of(row).transformer)[-2].register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()


@rows()
def test_a_run_that_is_stopped_leaves_nothing_behind(row: Row) -> None:
    tau = natural(row)
    with cached(row, **tau) as trace:
        wanted = made(row)
    decided = letters(trace.steps)
    pipe = pipeline_of(row)
    with h2_cache(pipe, **tau) as trace:
        with pytest.raises(Stopped), stopped_in_a_block(row):
            made(row)
        assert np.array_equal(made(row), wanted)
        if not row.modular:  # these have no callback
            with pytest.raises(Stopped):
                made(row, callback_on_step_end=raises)
            assert np.array_equal(made(row), wanted)
            made(row, callback_on_step_end=interrupts)
            assert np.array_equal(made(row), wanted)
        runs = sorted({step.run for step in trace.steps})
        found = [letters([step for step in trace.steps if step.run == run]) for run in runs]
    assert found == [decided, decided[:2], decided, decided[:2], decided][: 1 if row.modular else 5]
    assert np.array_equal(made(row), plain(row))


@rows()
def test_a_second_call_of_another_size_is_a_trajectory_of_its_own(row: Row) -> None:
    tau, fresh = natural(row), []
    for size in ({}, larger(row)):
        with cached(row, **tau) as trace:
            fresh.append((made(row, **size), letters(trace.steps)))
    assert fresh[1][0].size > fresh[0][0].size
    with cached(row, **tau) as trace:
        for size, (wanted, _) in zip(({}, larger(row), {}), (*fresh, fresh[0]), strict=True):
            assert np.array_equal(made(row, **size), wanted)
    got = [letters([step for step in trace.steps if step.run == run]) for run in range(3)]
    assert got == [fresh[0][1], fresh[1][1], fresh[0][1]]


@rows(lambda row: any(word in row.task for word in ("editing", "reference", "filling", "control", "image")))
def test_pictures_of_the_run_before_are_forgotten(row: Row) -> None:
    tau, other = natural(row), {}
    for name in ("image", "image_reference", "control_image"):
        if name in asked(row):
            other[name] = [picture(250)] if isinstance(asked(row)[name], list) else picture(250)
    with cached(row, **tau):
        wanted = made(row, **other)
    assert not np.array_equal(wanted, made(row))
    with cached(row, **tau):
        made(row)
        assert np.array_equal(made(row, **other), wanted)


@rows(lambda row: "control_lora" not in row.call)  # unloading takes that off, too
def test_a_lora_begins_anew_and_leaves_without_a_trace(row: Row) -> None:
    pipe, tau = pipeline_of(row), natural(row)
    with lora(pipe):
        changed = made(row)
    assert not np.array_equal(changed, plain(row))
    with cached(row, **tau):
        wanted = made(row)
    with cached(row, **tau) as trace, lora(pipe):
        fresh = made(row)
    with cached(row, **tau) as trace:
        assert np.array_equal(made(row), wanted)
        with lora(pipe):
            assert np.array_equal(made(row), fresh)
        assert np.array_equal(made(row), wanted)
    assert [step.full for step in trace.steps if step.step == 0] == [True] * 3
    with lora(pipe), cached(row, **NEVER):
        assert np.array_equal(made(row), changed)
    assert np.array_equal(made(row), plain(row))
