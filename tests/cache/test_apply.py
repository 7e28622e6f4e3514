"""On and off leave no trace, whatever other hooks there are; and what the checks cost."""

from __future__ import annotations

import copy
import inspect
import math
import sys
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from torch.utils._python_dispatch import TorchDispatchMode

from h2gen.cache import CacheConfig, apply, h2_cache, remove, summary
from tests.cache.drive import assert_same_decisions, run, run_reference, thresholds, trajectory
from tests.cache.reference import Rules
from tests.small import flux2_transformer, flux_pipeline, flux_transformer, run_kwargs

both_models = pytest.mark.parametrize("make", [flux_transformer, flux2_transformer], ids=["FLUX.1", "FLUX.2"])
BUSY = CacheConfig(tau1=0.3, tau2=0.4)
TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def same(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return len(got) == len(wanted) and all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def footprint(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    """All that hooks could have changed in each module of a model."""
    return {
        name: (
            sorted(module.__dict__),
            module.__dict__.get("forward"),
            list(module.__dict__["_diffusers_hook"].hooks) if "_diffusers_hook" in module.__dict__ else None,
            [list(getattr(module, hooks)) for hooks in TORCH_HOOKS],
            type(module),
        )
        for name, module in model.named_modules()
    }


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@both_models
def test_removing_leaves_the_model_exactly_as_it_was(make: Any) -> None:
    model = make()
    before, weights = footprint(model), values(model)
    plain = run(model, 4, named=False)
    apply(model, BUSY)
    run(model, 4, named=False)
    remove(model)
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        assert "forward" not in block.__dict__
        assert not hasattr(block, "_diffusers_hook")
    assert footprint(model) == before
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert same(run(model, 4, named=False), plain)


@both_models
def test_a_removed_cache_leaves_nothing_even_where_contexts_were_set(make: Any) -> None:
    model = make()
    plain = run(model, 4)  # setting a context makes diffusers' own registry on the root
    before = footprint(model)
    with h2_cache(model, config=BUSY):
        run(model, 4)
    assert footprint(model) == before
    assert same(run(model, 4), plain)


@both_models
def test_a_cache_applied_after_a_run_sees_the_contexts(make: Any) -> None:
    """diffusers remembers which modules had hooks when a context was last set; a new cache must not be missed."""
    model = make()
    run(model, 2)
    with h2_cache(model, config=BUSY) as trace:
        run(model, 2, passes=("uncond",))
    assert [record.context for record in trace.steps] == ["uncond", "uncond"]


@both_models
def test_names_and_values_of_weights_stay_while_it_is_on(make: Any) -> None:
    model = make()
    names, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    with h2_cache(model, config=BUSY):
        assert list(model.state_dict()) == names
        assert [name for name, _ in model.named_modules()] == modules
        assert isinstance(model.transformer_blocks, torch.nn.ModuleList)


@both_models
def test_a_model_can_be_copied_once_it_is_off(make: Any) -> None:
    model = make()
    plain = run(model, 2)
    with h2_cache(model, config=BUSY):
        run(model, 2)
    assert same(run(copy.deepcopy(model), 2), plain)


@both_models
def test_applying_twice_replaces(make: Any) -> None:
    model = make()
    tau = thresholds(model, 0.5, 0.5)
    before = footprint(model)
    first = apply(model, CacheConfig(tau1=1e9, tau2=1e9))
    second = apply(model, CacheConfig(**tau))
    got = run(model)
    wanted, decisions = run_reference(make(), Rules(**tau))
    assert_same_decisions(second.steps, decisions)
    assert same(got, wanted)
    assert first.steps == []
    remove(model)
    after = footprint(model)
    assert {name: after[name] for name in after if name} == {name: before[name] for name in before if name}


@both_models
def test_removing_what_was_never_applied_does_nothing(make: Any) -> None:
    model = make()
    before = footprint(model)
    remove(model)
    remove(model)
    assert footprint(model) == before


def test_leaving_by_an_exception_takes_the_cache_off() -> None:
    model = flux_transformer()
    before = footprint(model)
    with pytest.raises(KeyError), h2_cache(model, config=BUSY):
        raise KeyError
    assert footprint(model) == before


def test_the_trace_can_be_read_once_the_cache_is_off() -> None:
    model = flux_transformer()
    with h2_cache(model, config=BUSY) as trace:
        run(model, 3)
    assert len(trace.steps) == trace.summary.steps == 3


def test_a_pipeline_and_its_transformer_are_the_same_target() -> None:
    pipe = flux_pipeline()
    before = footprint(pipe.transformer)
    apply(pipe, BUSY)
    remove(pipe.transformer)
    assert footprint(pipe.transformer) == before
    apply(pipe.transformer, BUSY)
    remove(pipe)
    assert footprint(pipe.transformer) == before


class Operations(TorchDispatchMode):
    """Counts the operations that reach torch's dispatcher, and notes what is read out of tensors.

    Operations on a single number alone are left out: a pass may look at its timestep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.read: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.read.append(output)
        elif name in ("equal", "nonzero", "is_nonzero"):
            self.read.append(math.nan)
        elif any(isinstance(arg, torch.Tensor) and arg.numel() > 1 for arg in args):
            self.counts[name] += 1
        return output


def spy_on_the_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the summary functions as they are called, by whatever name a module of the cache holds them."""
    calls: list[str] = []
    spies = {}
    for name in ("summarize", "relative_change"):
        original = getattr(summary, name)
        spies[original] = lambda *args, name=name, original=original: calls.append(name) or original(*args)
    for module in [module for name, module in sys.modules.items() if name.startswith("h2gen.cache")]:
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value in spies:
                monkeypatch.setattr(module, name, spies[value])
    return calls


@both_models
def test_with_both_thresholds_at_zero_nothing_more_is_computed(make: Any) -> None:
    model = make()
    with Operations() as plainly:
        plain = run(model, 4, passes=("cond", "uncond"))
    with h2_cache(model, tau1=0, tau2=0) as trace, Operations() as cached:
        got = run(model, 4, passes=("cond", "uncond"))
    assert same(got, plain)
    assert cached.counts == plainly.counts
    assert len(trace.steps) == 8
    for record in trace.steps:
        assert (record.structure.change, record.detail.change) == (None, None)
        assert (record.structure.outcome, record.detail.outcome) == ("computed", "computed")
        assert record.blocks_run == record.blocks_total


@both_models
def test_with_both_thresholds_at_zero_nothing_is_summarized(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy_on_the_checks(monkeypatch)
    model = make()
    with h2_cache(model, tau1=0, tau2=0):
        run(model, 4)
    assert calls == []
    with h2_cache(model, tau1=0.1, tau2=0):
        run(model, 4)
    assert calls.count("relative_change") == 3


@both_models
@pytest.mark.parametrize("shares", [(0.4, 0.7), (None, 0.5), (1.0, 1.0), (0.0, 0.0)], ids=str)
def test_each_decision_reads_one_number_and_nothing_else_does(
    make: Any, shares: tuple[float | None, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is read makes the device finish first; a timestep is copied from it without waiting."""
    model, passes, steps = make(), ("cond", "uncond"), 6
    tau = thresholds(model, *shares, steps=steps)
    unseen: list[str] = []  # ways to read a tensor that pass the dispatcher by
    with Operations() as plainly:
        run(model, steps, passes=passes)
    with h2_cache(model, **tau) as trace:
        for name in ("tolist", "numpy", "__array__"):
            original = getattr(torch.Tensor, name)
            monkeypatch.setattr(
                torch.Tensor, name, lambda *args, name=name, original=original: unseen.append(name) or original(*args)
            )
        with Operations() as cached:
            run(model, steps, passes=passes)
        monkeypatch.undo()
    changes = [
        stage.change
        for record in trace.steps
        for stage in (record.structure, record.detail)
        if stage.change is not None
    ]
    timesteps = {number for record in trace.steps for number in (record.sigma, record.timestep)}
    read = list((Counter(cached.read) - Counter(plainly.read)).elements())
    assert [number for number in read if number not in timesteps] == changes
    assert changes
    assert unseen == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@both_models
@pytest.mark.parametrize("shares", [(0.4, 0.7), (None, None)], ids=str)
def test_a_gpu_is_waited_for_once_a_decision_at_most(make: Any, shares: tuple[float | None, float | None]) -> None:
    model = make()
    tau = thresholds(model, *shares)
    model.to("cuda")
    calls = [
        {name: value if value is None else value.to("cuda") for name, value in given.items()}
        for _, given in trajectory(model)
    ]

    def waits() -> int:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for given in calls:
                    model(**given)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    plainly = waits()
    with h2_cache(model, **tau) as trace:
        cached = waits()
    decisions = sum(stage.change is not None for record in trace.steps for stage in (record.structure, record.detail))
    assert cached - plainly <= decisions


def test_no_check_is_computed_where_the_outcome_is_forced_or_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = flux_transformer()
    calls = spy_on_the_checks(monkeypatch)
    with h2_cache(model, tau1=1e9, tau2=1e9, max_consecutive=2) as trace:
        run(model, 9)
    outcomes = [record.structure.outcome.value for record in trace.steps]
    assert outcomes == ["computed", "reused", "reused", "guarded", "reused", "reused", "guarded", "reused", "reused"]
    assert calls.count("relative_change") == 6  # one for each structure hit, none for its forced detail


@pytest.mark.parametrize("first", ["offloading first", "cache first"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_works_beside_it_and_stays(first: str, kind: str) -> None:
    model = flux_transformer()
    tau = thresholds(model, 0.5, 0.5)
    wanted, decisions = run_reference(model, Rules(**tau))
    plain = run(model, 3)

    def offload() -> None:
        apply_group_offloading(
            model,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
        )

    if first == "offloading first":
        offload()
        offloaded = footprint(model)
        trace = apply(model, CacheConfig(**tau))
    else:
        trace = apply(model, CacheConfig(**tau))
        offload()
    assert same(run(model), wanted)
    assert_same_decisions(trace.steps, decisions)
    remove(model)
    hooked = [name for name, (_, _, hooks, _, _) in footprint(model).items() if hooks]
    assert any(name.startswith("transformer_blocks.") for name in hooked)
    assert all("group_offloading" in hook for _, _, hooks, _, _ in footprint(model).values() for hook in hooks or [])
    if first == "offloading first":
        after = footprint(model)
        assert {name: item[2:4] for name, item in after.items()} == {n: item[2:4] for n, item in offloaded.items()}
    assert same(run(model, 3), plain)


@both_models
def test_layerwise_casting_works_beside_it_and_stays(make: Any) -> None:
    model = make()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    plain = run(model, 3)
    tau = thresholds(model, 0.5, 0.5)
    wanted, decisions = run_reference(model, Rules(**tau))
    before = footprint(model)
    with h2_cache(model, **tau) as trace:
        got = run(model)
    assert_same_decisions(trace.steps, decisions)
    assert same(got, wanted)
    assert footprint(model) == before
    assert same(run(model, 3), plain)


@pytest.mark.parametrize("order", ["accelerate first", "cache first"])
def test_accelerates_hooks_on_blocks_work_beside_it_and_stay(order: str) -> None:
    model = flux_transformer()
    tau = thresholds(model, 0.5, 0.5)
    wanted, decisions = run_reference(model, Rules(**tau))
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]

    def align() -> None:
        for block in blocks:
            add_hook_to_module(block, AlignDevicesHook(execution_device="cpu", io_same_device=True))

    if order == "accelerate first":
        align()
        trace = apply(model, CacheConfig(**tau))
    else:
        trace = apply(model, CacheConfig(**tau))
        align()
    assert same(run(model), wanted)
    assert_same_decisions(trace.steps, decisions)
    remove(model)
    assert all(isinstance(block._hf_hook, AlignDevicesHook) for block in blocks)
    plain = run(flux_transformer(), 3)
    assert same(run(model, 3), plain)
    assert len(trace.steps) == len(decisions)


def test_torch_hooks_of_others_are_called_and_stay() -> None:
    model = flux_transformer()
    seen: list[int] = []
    handles = [block.register_forward_hook(lambda *_: seen.append(1)) for block in model.transformer_blocks]
    with h2_cache(model, config=BUSY):
        run(model, 2)
    before = len(seen)
    run(model, 1)
    assert len(seen) == before + 3
    for handle in handles:
        handle.remove()


def test_the_pictures_of_a_pipeline_are_plain_again() -> None:
    pipe = flux_pipeline()
    plain = pipe(**run_kwargs(pipe, steps=3)).images
    with h2_cache(pipe, tau1=1e9, tau2=1e9):
        cached = pipe(**run_kwargs(pipe, steps=3)).images
    assert (cached != plain).any()
    assert (pipe(**run_kwargs(pipe, steps=3)).images == plain).all()
