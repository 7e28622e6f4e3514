"""The hooks decide and compute what ``docs/method.md`` says, step by step: bare transformers against the reference."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from h2gen.cache import CacheConfig, Outcome, apply, h2_cache
from h2gen.cache.block_call import BlockCall
from h2gen.errors import CacheError
from tests.cache.drive import (
    STEPS,
    assert_same_decisions,
    both_models,
    flux,
    flux2,
    kinds,
    natural_changes,
    run,
    run_reference,
    same,
    thresholds,
    trajectory,
)
from tests.cache.reference import Rules

# Shares of the natural changes below tau1 and tau2; None is a threshold of 0.
SHARES = [
    (0.5, 0.5),
    (0.2, 0.8),
    (0.8, 0.2),
    (0.0, 0.5),
    (1.0, 1.0),
    (None, 0.5),
    (0.5, None),
    (None, None),
]


def assert_like_the_paper(model: Any, rules: Rules, **kwargs: Any) -> set[str]:
    """Decisions and outputs equal the reference's, bit for bit; returns which outcomes occurred."""
    wanted, decisions = run_reference(model, rules, **kwargs)
    with h2_cache(model, config=CacheConfig(tau1=rules.tau1, tau2=rules.tau2)) as trace:
        got = run(model, **kwargs)
    assert_same_decisions(trace.steps, decisions)
    assert same(got, wanted)
    return kinds(decisions)


@both_models
@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_decisions_and_outputs_are_the_papers(make: Any, shares: tuple[float | None, float | None]) -> None:
    model = make()
    assert_like_the_paper(model, Rules(**thresholds(model, *shares)))


@both_models
def test_the_thresholds_of_these_tests_bring_about_every_outcome(make: Any) -> None:
    model = make()
    mixed, detail = (
        kinds(run_reference(model, Rules(**thresholds(model, *shares)))[1]) for shares in ((0.2, 0.8), (None, 0.5))
    )
    assert mixed == {"full", "all reused", "detail reused"}
    assert detail == {"full", "detail reused"}


@both_models
@pytest.mark.parametrize("shares", [(0.4, 0.7), (None, 0.6)], ids=str)
@pytest.mark.parametrize("named", [True, False], ids=["named contexts", "no contexts"])
def test_cond_and_uncond_have_each_their_own_state(make: Any, shares: tuple[float, float], named: bool) -> None:
    model, passes = make(), ("cond", "uncond")
    rules = Rules(**thresholds(model, *shares))
    wanted, decisions = run_reference(model, rules, passes=passes)
    with h2_cache(model, tau1=rules.tau1, tau2=rules.tau2) as trace:
        got = run(model, passes=passes, named=named)
    assert_same_decisions(trace.steps, decisions)
    assert same(got, wanted)
    assert [record.context for record in trace.steps] == ["cond", "uncond"] * STEPS
    assert [record.step for record in trace.steps] == [step for step in range(STEPS) for _ in passes]
    assert decisions[0::2] != decisions[1::2]


def test_large_pictures_are_pooled() -> None:
    """1024 image tokens and 5 of text: k is 1 for structure and 2 for detail."""
    model = flux2(layers=1, single_layers=2)
    rules = Rules(**thresholds(model, 0.5, 0.5, steps=4, side=32))
    assert len(assert_like_the_paper(model, rules, steps=4, side=32)) > 1


def test_the_largest_pictures_are_pooled_in_both_stages() -> None:
    """4096 image tokens and 5 of text: k is 2 for structure and 10 for detail."""
    assert_like_the_paper(flux(layers=1, single_layers=1), Rules(1e-12, 1e-12), steps=2, side=64)


@both_models
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_decides_as_the_paper_does(make: Any, dtype: torch.dtype) -> None:
    model = make().to(dtype)
    rules = Rules(**thresholds(model, 0.4, 0.7, dtype=dtype))
    wanted, decisions = run_reference(model, rules, dtype=dtype)
    with h2_cache(model, tau1=rules.tau1, tau2=rules.tau2) as trace:
        got = run(model, dtype=dtype)
    assert_same_decisions(trace.steps, decisions, rel=2e-3)
    assert same(got, wanted)
    assert len(kinds(decisions)) > 1


@both_models
@pytest.mark.parametrize("layers", [(1, 1), (1, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("shares", [(0.5, 0.5), (None, 0.5)], ids=str)
def test_models_of_one_block_in_a_stage_work(
    make: Any, layers: tuple[int, int], shares: tuple[float | None, float]
) -> None:
    model = make(layers=layers[0], single_layers=layers[1])
    rules = Rules(**thresholds(model, *shares))
    assert_like_the_paper(model, rules)


@both_models
def test_the_blocks_that_the_trace_counts_are_those_that_ran(make: Any) -> None:
    model = make(layers=3, single_layers=4)
    ran: list[int] = []
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.attn.register_forward_pre_hook(lambda *_: ran.append(1))
    tau = thresholds(model, 0.4, 0.7)
    ran.clear()
    with h2_cache(model, **tau) as trace:
        run(model)
    assert len(ran) == sum(record.blocks_run for record in trace.steps)
    assert {record.blocks_total for record in trace.steps} == {7}
    cost = {
        (Outcome.COMPUTED, Outcome.COMPUTED): 3 + 4,
        (Outcome.COMPUTED, Outcome.REUSED): 3 + 1,
        (Outcome.REUSED, Outcome.FORCED): 1 + 1,
    }
    assert [r.blocks_run for r in trace.steps] == [cost[r.structure.outcome, r.detail.outcome] for r in trace.steps]
    assert {r.blocks_run for r in trace.steps} == {7, 4, 2}


@both_models
@pytest.mark.parametrize(
    "guards",
    [
        {"warmup_steps": 4},
        {"max_consecutive": 2},
        {"warmup_steps": 2, "max_consecutive": 1},
    ],
    ids=str,
)
def test_guarded_steps_are_full_unmeasured_and_kept(make: Any, guards: dict[str, int]) -> None:
    model = make()
    tau = thresholds(model, 0.9, 0.9)
    wanted, decisions = run_reference(model, Rules(**tau, **guards))
    with h2_cache(model, **tau, **guards) as trace:
        got = run(model)
    assert_same_decisions(trace.steps, decisions)
    assert same(got, wanted)
    guarded = [record for record in trace.steps if record.structure.outcome == "guarded"]
    assert guarded
    for record in guarded:
        assert record.full
        assert record.detail.outcome == "guarded"
        assert (record.structure.change, record.detail.change) == (None, None)


def test_guards_count_cond_and_uncond_apart() -> None:
    model, passes = flux(), ("cond", "uncond")
    tau, guards = thresholds(model, 0.6, 0.9), {"max_consecutive": 2, "warmup_steps": 2}
    wanted, decisions = run_reference(model, Rules(**tau, **guards), passes=passes)
    with h2_cache(model, **tau, **guards) as trace:
        got = run(model, passes=passes)
    assert_same_decisions(trace.steps, decisions)
    assert same(got, wanted)


@contextmanager
def spoilt(block: torch.nn.Module, when: set[int], how: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    """Replaces a first block's output by ``how(before, after)`` for each stream, at some of its calls."""
    original, calls = block.forward, itertools.count()

    def forward(**kwargs: Any) -> Any:
        output = original(**kwargs)
        if next(calls) not in when:
            return output
        if isinstance(output, torch.Tensor):
            return how(kwargs["hidden_states"], output)
        before = kwargs["encoder_hidden_states"], kwargs["hidden_states"]
        return tuple(how(*pair) for pair in zip(before, output, strict=True))

    block.forward = forward
    try:
        yield
    finally:
        del block.forward


def first_block(model: Any, stage: str) -> torch.nn.Module:
    return (model.transformer_blocks if stage == "structure" else model.single_transformer_blocks)[0]


# tau1, tau2 at which one stage always hits, once it can, and does not affect the other.
ALWAYS = {"structure": {"tau1": 1e9, "tau2": 1e-9}, "detail": {"tau1": 1e-9, "tau2": 1e9}}


@both_models
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("stage", ["structure", "detail"])
def test_a_change_that_is_not_finite_is_a_miss_counted_and_warned_of_once(make: Any, bad: float, stage: str) -> None:
    model = make()
    spoil = spoilt(first_block(model, stage), {3, 4, 8}, lambda _before, after: after * bad)
    with spoil, warnings.catch_warnings(record=True) as caught, h2_cache(model, **ALWAYS[stage]) as trace:
        warnings.simplefilter("always")
        outputs = run(model, 10)
    records = [getattr(record, stage) for record in trace.steps]
    # A bad indicator is a miss and is kept, so the next good one is a miss as well.
    missed = [index for index, record in enumerate(records) if record.outcome == "computed"]
    assert missed == [0, 3, 4, 5, 8, 9]
    assert trace.summary.not_finite >= 5
    measured = [c for r in trace.steps for c in (r.structure.change, r.detail.change) if c is not None]
    assert trace.summary.not_finite == sum(not math.isfinite(change) for change in measured)
    ours = [warning for warning in caught if warning.category is RuntimeWarning]
    assert len(ours) == 1
    assert "finite" in str(ours[0].message)
    assert [index for index, output in enumerate(outputs) if not output.isfinite().all()] == [3, 4, 8]


@both_models
@pytest.mark.parametrize("stage", ["structure", "detail"])
def test_a_kept_residual_of_nothing_is_a_miss_until_there_is_something(make: Any, stage: str) -> None:
    model = make()
    still = spoilt(first_block(model, stage), {0, 1}, lambda before, _after: before.clone())
    warned = pytest.warns(RuntimeWarning, match="finite")
    with still, warned as caught, h2_cache(model, **ALWAYS[stage]) as trace:
        run(model, 5)
    outcomes = [getattr(record, stage).outcome.value for record in trace.steps]
    assert outcomes == ["computed", "computed", "computed", "reused", "reused"]
    assert trace.summary.not_finite == 2
    assert len(caught) == 1


@both_models
def test_a_change_of_exactly_the_threshold_is_a_miss(make: Any) -> None:
    model = make()
    with h2_cache(model, tau1=1e-9, tau2=1e-9) as trace:
        run(model, steps=2)
    structure, detail = trace.steps[1].structure.change, trace.steps[1].detail.change
    assert structure is not None
    assert detail is not None
    with h2_cache(model, tau1=structure, tau2=detail) as trace:
        run(model, steps=2)
    assert trace.steps[1].full
    with h2_cache(model, tau1=math.nextafter(structure, 9), tau2=detail) as trace:
        run(model, steps=2)
    assert trace.steps[1].all_reused
    with h2_cache(model, tau1=structure, tau2=math.nextafter(detail, 9)) as trace:
        run(model, steps=2)
    assert (trace.steps[1].structure.outcome, trace.steps[1].detail.outcome) == ("computed", "reused")


@pytest.mark.parametrize(("layers", "single_layers"), [(0, 4), (3, 0)])
def test_a_model_without_one_kind_of_blocks_is_refused_by_name(layers: int, single_layers: int) -> None:
    model = flux(layers=layers, single_layers=single_layers)
    with pytest.raises(CacheError, match="FluxTransformer2DModel"):
        apply(model, CacheConfig())
    assert not hasattr(model, "_diffusers_hook")


@pytest.mark.parametrize(
    "target", [torch.nn.Linear(2, 2), torch.nn.Sequential(), object()], ids=lambda t: type(t).__name__
)
def test_what_is_no_flux_is_refused_by_name(target: object) -> None:
    with pytest.raises(CacheError, match=type(target).__name__):
        apply(target, CacheConfig())


def test_a_model_with_a_cache_of_diffusers_is_refused() -> None:
    from diffusers import FirstBlockCacheConfig

    model = flux()
    plain = run(model, steps=2)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(CacheError, match="FirstBlockCache"):
        apply(model, CacheConfig())
    model.disable_cache()
    with h2_cache(model, tau1=0, tau2=0):
        assert same(run(model, steps=2), plain)


def test_natural_changes_are_no_accident() -> None:
    """Thresholds of these tests come from a fully computed run, which must show changes."""
    for make in (flux, flux2):
        structure, detail = natural_changes(make())
        assert len(structure) == len(detail) == STEPS - 1
        assert 0 < structure[0] < structure[-1]
        assert 0 < detail[0] < detail[-1]


def test_inputs_are_not_written_to() -> None:
    model = flux()
    calls = [given for _, given in trajectory(model, 4)]
    before = [{name: value.clone() for name, value in given.items()} for given in calls]
    with torch.no_grad(), h2_cache(model, tau1=1e9, tau2=1e9):
        for given in calls:
            model(**given)
    for given, copies in zip(calls, before, strict=True):
        assert all(torch.equal(given[name], value) for name, value in copies.items())


@pytest.mark.parametrize(
    ("settings", "looked_at"),
    [
        ({"plan": "FFFF"}, 0),
        ({"plan": "FFFS"}, 0),
        ({"tau1": 0, "tau2": 0}, 0),
        ({"plan": "FFFD"}, 2),  # the detail stage's first and last block
        ({"tau1": 0, "tau2": 1e-9}, 2),
        ({"tau1": 1e-9, "tau2": 1e-9}, 4),
    ],
    ids=str,
)
def test_blocks_that_only_run_are_only_counted(
    settings: dict[str, Any], looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    after = BlockCall._after
    monkeypatch.setattr(BlockCall, "_after", lambda *given: [calls.append(1), after(*given)][1])
    model = flux(layers=3, single_layers=4)
    with h2_cache(model, **settings) as trace:
        run(model, 4)
    full = [step for step in trace.steps if step.full]
    assert [step.blocks_run for step in full] == [7] * len(full) and len(full) >= 3
    assert len(calls) == looked_at * len(full) + sum(step.detail_reused for step in trace.steps)


def test_compiled_blocks_that_only_run_are_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Any] = []
    monkeypatch.setattr(BlockCall, "_after", lambda *given: looked_at.append(given))
    model = flux(layers=3, single_layers=4)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block._compiled_call_impl = block._call_impl  # what ``compile`` sets, without the time that it takes
    with h2_cache(model, plan="FF") as trace:
        run(model, 2)
    assert not looked_at and [step.blocks_run for step in trace.steps] == [7, 7]


def test_a_block_that_the_model_leaves_out_is_not_counted() -> None:
    model = flux(layers=3, single_layers=4)
    middle = model.single_transformer_blocks[1]
    middle.forward = lambda hidden_states, encoder_hidden_states, **_: (encoder_hidden_states, hidden_states)
    with h2_cache(model, plan="FF") as trace:
        run(model, 2)
    assert [step.blocks_run for step in trace.steps] == [6, 6]
