"""What the trace says is what happened, and its totals add up."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, Outcome, StageRecord, StepRecord, Summary, Trace, apply, h2_cache, remove
from h2gen.cache.policies.thresholds import suggest_thresholds
from h2gen.cache.summary import summarize_steps
from tests.cache.drive import STEPS, flux, flux2, run, thresholds

PAIRS = [
    (Outcome.COMPUTED, Outcome.COMPUTED),
    (Outcome.COMPUTED, Outcome.REUSED),
    (Outcome.REUSED, Outcome.FORCED),
    (Outcome.GUARDED, Outcome.GUARDED),
    (Outcome.REUSED, Outcome.COMPUTED),
    (Outcome.REUSED, Outcome.REUSED),
    (Outcome.SKIPPED, Outcome.SKIPPED),
]
changes = st.none() | st.floats(0, 5) | st.sampled_from([math.nan, math.inf])


@st.composite
def records(draw: st.DrawFn) -> StepRecord:
    structure, detail = draw(st.sampled_from(PAIRS))
    doubles, singles = draw(st.integers(1, 19)), draw(st.integers(1, 38))
    ran = 0 if structure is Outcome.SKIPPED else (doubles if structure.ran else 1) + (singles if detail.ran else 1)
    timestep = draw(st.floats(0, 1000))
    return StepRecord(
        run=0,
        step=draw(st.integers(0, 99)),
        context="cond",
        timestep=timestep,
        sigma=timestep / 1000,
        structure=StageRecord(draw(changes), structure),
        detail=StageRecord(draw(changes), detail),
        blocks_run=ran,
        blocks_total=doubles + singles,
        seconds=draw(st.floats(0, 1)),
    )


def record(structure: float | None = 0.1, detail: float | None = 0.2, **more: Any) -> StepRecord:
    fields = {
        "run": 0,
        "step": 3,
        "context": "cond",
        "timestep": 912.5,
        "sigma": 0.9125,
        "structure": StageRecord(structure, Outcome.COMPUTED),
        "detail": StageRecord(detail, Outcome.COMPUTED),
        "blocks_run": 57,
        "blocks_total": 57,
        "seconds": 0.5,
    }
    return StepRecord(**(fields | more))


@given(st.lists(records(), max_size=30))
def test_totals_add_up(steps: list[StepRecord]) -> None:
    total = summarize_steps(steps)
    reused = total.detail_reused + total.structure_reused + total.all_reused
    assert total.steps == len(steps) == total.full + reused + total.skipped
    assert total.full == sum(step.full for step in steps)
    assert total.blocks_run == sum(step.blocks_run for step in steps)
    assert total.blocks_total == sum(step.blocks_total for step in steps)
    assert total.seconds == pytest.approx(sum(step.seconds for step in steps))
    if total.blocks_run:
        assert total.share == pytest.approx(total.blocks_run / total.blocks_total)
        assert total.estimated_speedup == pytest.approx(1 / total.share)
        assert total.estimated_speedup >= 1
    assert total.not_finite == sum(
        stage.change is not None and not math.isfinite(stage.change)
        for step in steps
        for stage in (step.structure, step.detail)
    )


@given(records())
def test_a_step_is_full_exactly_where_all_its_blocks_ran(step: StepRecord) -> None:
    """Unless a stage has only one block, which runs even when it is reused."""
    if step.full:
        assert step.blocks_run == step.blocks_total
    assert step.full == (step.structure.outcome.ran and step.detail.outcome.ran)
    assert [step.full, step.detail_reused, step.structure_reused, step.all_reused, step.skipped].count(True) == 1
    if step.skipped:
        assert step.blocks_run == 0


@given(records())
def test_a_step_is_written_as_json_without_nan(step: StepRecord) -> None:
    text = json.dumps(step.to_json(), allow_nan=False)
    assert json.loads(text)["structure"]["outcome"] == step.structure.outcome.value


def test_a_step_is_written_as_the_trace_file_wants_it() -> None:
    stages = {"structure": StageRecord(0.041, Outcome.REUSED), "detail": StageRecord(None, Outcome.FORCED)}
    step = dataclasses.replace(record(), **stages, blocks_run=2, seconds=0.0041)
    assert json.dumps(step.to_json()) == (
        '{"step": 3, "context": "cond", "timestep": 912.5, "sigma": 0.9125, '
        '"structure": {"change": 0.041, "outcome": "reused"}, "detail": {"change": null, "outcome": "forced"}, '
        '"blocks_run": 2, "blocks_total": 57, "seconds": 0.0041}'
    )


@given(st.lists(records(), max_size=10))
def test_totals_are_written_as_json(steps: list[StepRecord]) -> None:
    total = summarize_steps(steps)
    written = json.loads(json.dumps(total.to_json(), allow_nan=False))
    assert written["share"] == pytest.approx(total.share)
    outcomes = ("full", "detail_reused", "structure_reused", "all_reused", "skipped")
    assert written["passes"] == sum(written[name] for name in outcomes)


def test_an_empty_trace_claims_nothing() -> None:
    total = Trace().summary
    assert (total.steps, total.blocks_run, total.share, total.estimated_speedup) == (0, 0, 1.0, 1.0)
    assert Summary() == total


def test_the_cost_of_a_step_is_the_papers() -> None:
    """FLUX.1 has 19 and 38 blocks; the paper gives shares of 1, 0.35 and 0.035."""
    detail_reused = record(detail=0.1, blocks_run=20)
    assert summarize_steps([detail_reused]).share == pytest.approx(0.35, abs=0.005)
    assert summarize_steps([record(blocks_run=2)]).share == pytest.approx(0.035, abs=0.0005)
    assert summarize_steps([record()]).share == 1


@pytest.mark.parametrize("make", [flux, flux2])
def test_a_real_trace_adds_up_and_takes_the_time_of_the_blocks_that_run(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, now = make(), [0.0]

    def passes(*_: Any) -> None:
        now[0] += 1

    tau = thresholds(model, 0.3, 0.7)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.register_forward_pre_hook(passes)
    monkeypatch.setattr("h2gen.cache.stopwatch.time", SimpleNamespace(perf_counter=lambda: now[0]))
    with h2_cache(model, **tau) as trace:
        run(model)
    total = trace.summary
    assert total == summarize_steps(trace.steps)
    assert total.steps == STEPS
    assert 0 < total.share < 1
    assert [step.seconds for step in trace.steps] == [step.blocks_run for step in trace.steps]
    assert total.seconds == now[0]


def test_clearing_forgets_the_steps_and_nothing_else() -> None:
    model = flux()
    trace = apply(model, CacheConfig(tau1=1e9, tau2=1e9))
    run(model, 3)
    trace.clear()
    assert trace.steps == []
    assert trace.summary == Summary()
    run(model, 3)
    assert [step.full for step in trace.steps] == [True, False, False]
    assert {step.run for step in trace.steps} == {1}
    remove(model)


def test_an_observer_sees_each_step_once_and_in_order() -> None:
    model, seen = flux(), []
    with h2_cache(model, tau1=1e9, tau2=1e9) as trace:
        trace.on_step = seen.append
        for count in range(1, 4):
            run(model, 2)
            trace.flush(wait=True)
            assert len(seen) == 2 * count
    assert seen == trace.steps


def test_steps_read_while_a_run_goes_on_are_those_so_far() -> None:
    model, counts = flux(), []
    with h2_cache(model, CacheConfig()) as trace:
        handle = model.register_forward_pre_hook(lambda *_: counts.append(len(trace.steps)))
        run(model, 4)
        handle.remove()
    assert counts == [0, 1, 2, 3]


def test_records_cannot_be_written_to() -> None:
    with pytest.raises(AttributeError):
        record().step = 4  # type: ignore[misc]


def test_suggested_thresholds_would_have_reused_about_every_second_step() -> None:
    steps = [record(None, None)] + [record(change, 2 * change) for change in (0.11, 0.12, 0.13, 0.14, 0.15)]
    structure, detail = suggest_thresholds(steps)
    assert structure is not None
    assert detail is not None
    assert 0.13 < structure <= 0.15
    assert 0.26 < detail <= 0.28
    assert suggest_thresholds([record(None, None)]) == (None, None)
    assert suggest_thresholds([record(math.nan, math.inf)]) == (None, None)


@given(st.lists(st.floats(1e-4, 2), min_size=1, max_size=20))
def test_a_suggested_threshold_lies_above_at_least_half_of_the_changes(measured: list[float]) -> None:
    structure, detail = suggest_thresholds([record(change, None) for change in measured])
    assert detail is None
    assert structure is not None
    assert sum(change < structure for change in measured) >= len(measured) / 2


@pytest.mark.parametrize("make", [flux, flux2])
def test_suggested_thresholds_reuse_something_on_the_same_run(make: Any) -> None:
    model = make()
    with h2_cache(model, tau1=1e-9, tau2=1e-9) as trace:
        run(model)
    assert trace.summary.full == STEPS
    structure, detail = suggest_thresholds(trace.steps)
    with h2_cache(model, tau1=structure, tau2=detail) as trace:
        run(model)
    assert trace.summary.full < STEPS
