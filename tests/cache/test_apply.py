"""Putting the cache on and off leaves no trace, whatever other hooks there are."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

from h2gen.cache import CacheConfig, apply, h2_cache, remove
from h2gen.cache.memory import StageMemory
from h2gen.errors import CacheError
from tests.cache.drive import (
    assert_same_decisions,
    both_models,
    flux,
    run,
    run_reference,
    same,
    thresholds,
    trajectory,
)
from tests.cache.reference import Rules
from tests.small import flux_pipeline, run_kwargs

BUSY = CacheConfig(tau1=0.3, tau2=0.4)
TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def footprint(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    """Everything that hooks could have changed in each module of a model."""
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
def test_a_replaced_trace_grows_no_more(make: Any) -> None:
    model = make()
    first = apply(model, BUSY)
    run(model, 2)
    second = apply(model, BUSY)
    run(model, 3)
    assert (len(first.steps), len(second.steps)) == (2, 3)


def test_a_block_within_a_block_is_refused_and_the_outer_one_stays() -> None:
    model = flux()
    with h2_cache(model, plan="FR") as trace:
        for target in (model, flux_pipeline(transformer=model)):
            with pytest.raises(CacheError, match="already on"), h2_cache(target, plan="FR"):
                pass
        run(model, 2)
    assert [step.blocks_run for step in trace.steps] == [5, 2]


@both_models
def test_removing_what_was_never_applied_does_nothing(make: Any) -> None:
    model = make()
    before = footprint(model)
    remove(model)
    remove(model)
    assert footprint(model) == before


def test_leaving_by_an_exception_takes_the_cache_off() -> None:
    model = flux()
    before = footprint(model)
    with pytest.raises(KeyError), h2_cache(model, config=BUSY):
        raise KeyError
    assert footprint(model) == before


def test_the_trace_can_be_read_once_the_cache_is_off() -> None:
    model = flux()
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


@pytest.mark.parametrize("first", ["offloading first", "cache first"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_works_beside_it_and_stays(first: str, kind: str) -> None:
    model = flux()
    tau = thresholds(model, 0.5, 0.5)
    wanted, decisions = run_reference(model, Rules(**tau))
    plain = run(model, 3)

    def put_on() -> None:
        apply_group_offloading(
            model,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
        )

    if first == "offloading first":
        put_on()
        offloaded = footprint(model)
        trace = apply(model, CacheConfig(**tau))
    else:
        trace = apply(model, CacheConfig(**tau))
        put_on()
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


def blocks_of(model: Any) -> list[torch.nn.Module]:
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def offload(model: Any) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(
        model, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )


def own_forward(block: torch.nn.Module) -> None:
    """As patches of others do: a forward on the object, which calls the class's."""
    block.forward = lambda *args, **kwargs: type(block).forward(block, *args, **kwargs)  # type: ignore[method-assign]


def exchange_blocks(model: Any) -> None:
    for blocks in (model.transformer_blocks, model.single_transformer_blocks):
        for index, block in enumerate(blocks):
            blocks[index] = copy.copy(block)


DISTURBANCES: dict[str, Callable[[Any], None]] = {
    # What loading, fusing or unloading a LoRA does in the end; it needs no peft.
    "a LoRA under group offloading": _maybe_remove_and_reapply_group_offloading,
    "offloading put on": lambda model: None if hasattr(model, "_diffusers_hook") else offload(model),
    "forward replaced": lambda model: [own_forward(block) for block in blocks_of(model)],
    "forward reset": lambda model: [block.__dict__.pop("forward", None) for block in blocks_of(model)],
    "hooks deleted": lambda model: [block.__dict__.pop("_diffusers_hook", None) for block in blocks_of(model)],
    "accelerate's hook put on and taken off": lambda model: [
        (add_hook_to_module(block, AlignDevicesHook(execution_device="cpu")), remove_hook_from_module(block))
        for block in blocks_of(model)
    ],
    "blocks exchanged": exchange_blocks,
}


@pytest.mark.parametrize("disturb", DISTURBANCES.values(), ids=DISTURBANCES)
@pytest.mark.parametrize("under", ["nothing", "group offloading"])
def test_nothing_done_to_a_model_between_two_steps_drops_the_cache(under: str, disturb: Callable[[Any], None]) -> None:
    model = flux()
    settings = thresholds(model, 0.5, 0.7)
    with h2_cache(model, **settings) as trace:
        wanted = run(model)
    if under == "group offloading":
        offload(model)
    with h2_cache(model, **settings) as disturbed:
        got = []
        for step, (_, given) in enumerate(trajectory(model)):
            if step in (1, 4):
                disturb(model)
            with torch.no_grad():
                got.append(model(**given, return_dict=False)[0])
    assert same(got, wanted)
    assert [step.blocks_run for step in disturbed.steps] == [step.blocks_run for step in trace.steps]
    assert min(step.blocks_run for step in trace.steps) < 5


@both_models
def test_between_two_steps_nothing_is_on_the_blocks(make: Any) -> None:
    model = make()
    before = footprint(model)
    with h2_cache(model, config=BUSY):
        run(model, 2, named=False)
        assert {name: item for name, item in footprint(model).items() if name} == {n: i for n, i in before.items() if n}


def test_nothing_is_left_on_the_blocks_by_a_pass_that_fails() -> None:
    model = flux()
    before = footprint(model)
    trace = apply(model, CacheConfig(plan="FRRR"))
    fail = model.norm_out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, 2, named=False)
    fail.remove()
    after = footprint(model)
    assert all(after[name] == before[name] for name in before if name)
    assert trace.steps == []
    run(model, 2, named=False)
    assert [step.blocks_run for step in trace.steps] == [5, 2]


def interrupted(model: Any) -> None:
    """Torch does not call the hooks of a pass that is interrupted."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.transformer_blocks[1].attn.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(model, 2, named=False)
    handle.remove()


@pytest.mark.parametrize("after", ["nothing", *DISTURBANCES])
def test_a_pass_that_is_interrupted_is_no_obstacle(after: str) -> None:
    model = flux()
    plain, trace = run(model, 2, named=False), apply(model, CacheConfig(plan="FR"))
    interrupted(model)
    assert same(run(copy.deepcopy(model), 2, named=False), plain)
    DISTURBANCES.get(after, lambda _: None)(model)
    got = run(model, 2, named=False)
    assert [step.blocks_run for step in trace.steps] == [5, 2]
    assert same(got[:1], plain[:1]) and not same(got, plain)
    remove(model)
    assert same(run(model, 2, named=False), plain)


def test_an_interrupted_pass_leaves_nothing_once_the_cache_is_off() -> None:
    model = flux()
    before = footprint(model)
    apply(model, CacheConfig(plan="FR"))
    interrupted(model)
    remove(model)
    assert footprint(model) == before


def test_hooks_that_are_put_on_during_a_pass_stay_and_do_not_drop_the_cache() -> None:
    model = flux()
    plain, trace = run(model, 3, named=False), apply(model, CacheConfig(plan="FRF"))
    handle = model.transformer_blocks[0].attn.register_forward_pre_hook(lambda *_: (handle.remove(), offload(model))[0])
    got = run(model, 3, named=False)
    assert [step.blocks_run for step in trace.steps][1:] == [2, 5]
    assert same(got[::2], plain[::2])
    remove(model)
    assert same(run(model, 3, named=False), plain)


def test_a_pipeline_may_exchange_its_transformer_within_the_block() -> None:
    pipe = flux_pipeline()
    first, before = pipe.transformer, footprint(pipe.transformer)
    with h2_cache(pipe, config=BUSY):
        pipe.transformer = flux()
    assert footprint(first) == before


def test_a_removed_cache_frees_what_it_kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[torch.Tensor]] = []
    keep = StageMemory.keep_residual

    def remembered(memory: StageMemory, residual: Any, *rest: Any) -> None:
        kept.extend(weakref.ref(tensor) for tensor in residual)
        keep(memory, residual, *rest)

    monkeypatch.setattr(StageMemory, "keep_residual", remembered)
    model = flux()
    passes = list(trajectory(model, 2))  # its tensors stay alive
    apply(model, CacheConfig(plan="FR"))
    gc.disable()
    try:
        with torch.no_grad():
            for _, given in passes:
                model(**given)
        assert any(tensor() is not None for tensor in kept)
        remove(model)
        assert all(tensor() is None for tensor in kept)
    finally:
        gc.enable()


class Counting(AlignDevicesHook):
    """One of accelerate's hooks that counts its calls."""

    calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().pre_forward(module, *args, **kwargs)


@pytest.mark.parametrize("order", ["accelerate first", "cache first"])
@pytest.mark.parametrize(
    "where", ["", "transformer_blocks.0", "single_transformer_blocks.2"], ids=["root", "first", "last"]
)
def test_accelerates_hooks_work_beside_it_and_stay(order: str, where: str) -> None:
    model = flux()
    tau = thresholds(model, 0.5, 0.5)
    wanted, decisions = run_reference(model, Rules(**tau))
    plain = run(model, 3)
    module, hook = model.get_submodule(where), Counting(execution_device="cpu", io_same_device=True)
    if order == "accelerate first":
        add_hook_to_module(module, hook)
        trace = apply(model, CacheConfig(**tau))
    else:
        trace = apply(model, CacheConfig(**tau))
        add_hook_to_module(module, hook)
    assert same(run(model), wanted)
    assert_same_decisions(trace.steps, decisions)
    assert hook.calls > 0

    remove(model)
    before = hook.calls
    assert same(run(model, 3), plain)
    assert hook.calls == before + 3
    remove_hook_from_module(module)
    assert same(run(model, 3), plain)
    assert hook.calls == before + 3
    assert len(trace.steps) == len(decisions)


def test_torch_hooks_of_others_are_called_and_stay() -> None:
    model = flux()
    seen: list[int] = []
    handles = [block.register_forward_hook(lambda *_: seen.append(1)) for block in model.transformer_blocks]
    with h2_cache(model, config=BUSY):
        run(model, 2)
    before = len(seen)
    run(model, 1)
    assert len(seen) == before + 2
    for handle in handles:
        handle.remove()


def test_the_pictures_of_a_pipeline_are_plain_again() -> None:
    pipe = flux_pipeline()
    plain = pipe(**run_kwargs(pipe, steps=3)).images
    with h2_cache(pipe, tau1=1e9, tau2=1e9):
        cached = pipe(**run_kwargs(pipe, steps=3)).images
    assert (cached != plain).any()
    assert (pipe(**run_kwargs(pipe, steps=3)).images == plain).all()
