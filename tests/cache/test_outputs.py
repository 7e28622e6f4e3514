"""A step that is skipped entirely does not call the transformer's ``forward``, and returns what that would return."""

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import CpuOffload, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import HookRegistry, ModelHook
from torch.utils._python_dispatch import TorchDispatchMode

from h2gen.cache import CacheConfig, apply, h2_cache, remove
from h2gen.cache.overridden import Forward
from tests.cache.drive import STEPS, both_models, flux, flux2, latents, position_ids, prompt, run, same, trajectory
from tests.cache.test_apply import footprint
from tests.small import chroma_pipeline, flux3_pipeline, flux_pipeline, run_kwargs

PLAN = "FFSSFSFS"
SKIPPED = [letter == "S" for letter in PLAN]


class EachPass(TorchDispatchMode):
    """Counts the operations that reach torch's dispatcher, of every size, in each pass of a model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.passes: list[Counter[str]] = []
        self.inside = False
        begin = model.register_forward_pre_hook(self.begin)
        model._forward_pre_hooks.move_to_end(begin.id, last=False)  # before the cache's
        model.register_forward_hook(self.end)

    def begin(self, *_: Any) -> None:
        self.passes.append(Counter())
        self.inside = True

    def end(self, *_: Any) -> None:
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside:
            self.passes[-1][func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def passes_of(model: Any, count: list[str]) -> None:
    """Write down what runs: the transformer's embedder at each pass that calls its ``forward``."""
    model.x_embedder.register_forward_pre_hook(lambda *_: count.append("forward"))


@both_models
@pytest.mark.parametrize("batch", [1, 2])
def test_a_skipped_step_costs_a_handful_of_operations(make: Any, batch: int) -> None:
    model = make()
    with h2_cache(model, plan=PLAN), EachPass(model) as counted:
        run(model, batch=batch)
    for counts, skipped in zip(counted.passes, SKIPPED, strict=True):
        if skipped:  # the timestep is read, each picture's velocity is forecast, and a batch's are joined
            assert counts.pop("addcmul", 0) <= batch and counts.pop("cat", 0) == (batch > 1)
            assert counts.total() <= 4, counts
        else:
            assert counts.total() > 150


@both_models
@pytest.mark.parametrize("return_dict", [None, True, False])
def test_a_skipped_step_returns_the_same_kind_of_output(make: Any, return_dict: bool | None) -> None:
    model, embedded = make(), []
    passes_of(model, embedded)
    how = {} if return_dict is None else {"return_dict": return_dict}
    with torch.no_grad(), h2_cache(model, plan="FFS"):
        first, _, last = (model(**given, **how) for _, given in trajectory(model, 3))
    assert len(embedded) == 2
    assert type(first) is type(last)
    assert len(first) == len(last) == 1
    assert (first[0].shape, first[0].dtype) == (last[0].shape, last[0].dtype)
    assert not torch.equal(first[0], last[0])


def test_the_kind_of_output_may_change_during_a_run() -> None:
    """The transformer runs where it is not known yet what it returns; the picture does not depend on it."""
    model, embedded = flux(), []
    with h2_cache(model, plan="FFSSFS"):
        wanted = run(model, 6, named=False)
    passes_of(model, embedded)
    kinds = [True, True, False, True, False, False]
    with torch.no_grad(), h2_cache(model, plan="FFSSFS") as trace:
        outputs = [
            model(**given, return_dict=kind) for kind, (_, given) in zip(kinds, trajectory(model, 6), strict=True)
        ]
    assert same([output[0] for output in outputs], wanted)
    assert [isinstance(output, tuple) for output in outputs] == [not kind for kind in kinds]
    assert len(embedded) == 4  # F, F, F, and the first S that returns a tuple
    assert [step.blocks_run for step in trace.steps] == [5, 5, 0, 0, 5, 0]


def skips_nothing_itself(model: Any) -> Callable[[], None]:
    """What ``forward`` is, as a patch of others makes it: without what was there before."""
    model.forward = lambda *args, **kwargs: type(model).forward(model, *args, **kwargs)
    return lambda: model.__dict__.pop("forward")


class Root(ModelHook):
    """One of diffusers' hooks, as context parallelism puts them on the transformer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


def diffusers_hook(model: Any) -> Callable[[], None]:
    HookRegistry.check_if_exists_or_initialize(model).register_hook(Root(), "root")
    return lambda: model._diffusers_hook.remove_hook("root", recurse=False)


def accelerates_hook(model: Any) -> Callable[[], None]:
    add_hook_to_module(model, CpuOffload(execution_device="cpu"))
    return lambda: remove_hook_from_module(model)


OTHERS = {"accelerate": accelerates_hook, "diffusers": diffusers_hook, "a patch": skips_nothing_itself}
others = pytest.mark.parametrize("put_on", OTHERS.values(), ids=OTHERS)


@others
@pytest.mark.parametrize("when", [-1, 0, 1, 3])
@pytest.mark.parametrize("off", [None, 4, 5])
def test_whoever_hooks_the_transformer_the_outputs_and_the_trace_stay(
    put_on: Callable[[Any], Callable[[], None]], when: int, off: int | None
) -> None:
    model, embedded = flux(), []
    with h2_cache(model, plan=PLAN) as plain:
        wanted = run(model, named=False)
    take_off = put_on(model) if when < 0 else None
    passes_of(model, embedded)
    trace, got = apply(model, CacheConfig(plan=PLAN)), []
    for step, (_, given) in enumerate(trajectory(model)):
        if step == when:
            take_off = put_on(model)
        if step == off and take_off is not None:
            take_off()
        with torch.no_grad():
            got.append(model(**given, return_dict=False)[0])
    remove(model)
    if off is None and take_off is not None:
        take_off()
    assert same(got, wanted)
    assert [step.blocks_run for step in trace.steps] == [step.blocks_run for step in plain.steps]
    # A pass between a change of the transformer's ``forward`` and the next one calls it.
    assert PLAN.count("F") <= len(embedded) <= PLAN.count("F") + 2
    with torch.no_grad():
        embedded.clear()
        run(model, 2, named=False)
    assert len(embedded) == 2
    if put_on is skips_nothing_itself or when < 0:
        assert not isinstance(model.__dict__.get("forward"), Forward)


@pytest.mark.parametrize("order", ["accelerate first", "cache first"])
def test_a_skipped_step_calls_no_hook_that_moves_weights(order: str) -> None:
    model, calls = flux(), []

    class Moves(CpuOffload):
        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return super().pre_forward(module, *args, **kwargs)

    hook = Moves(execution_device="cpu")
    if order == "accelerate first":
        add_hook_to_module(model, hook)
    with h2_cache(model, plan=PLAN):
        if order == "cache first":
            add_hook_to_module(model, hook)
        run(model)
    assert len(calls) == PLAN.count("F")
    remove_hook_from_module(model)
    assert torch.equal(run(model, 1)[0], run(flux(), 1)[0])


@both_models
def test_forward_is_exactly_as_it_was_once_the_cache_is_off(make: Any) -> None:
    model = make()
    before = footprint(model)
    for _ in range(2):
        with h2_cache(model, plan=PLAN):
            assert inspect.signature(model.forward) == inspect.signature(type(model).forward.__get__(model))
            run(model, named=False)
    assert footprint(model) == before


def test_a_copy_calls_its_own_forward() -> None:
    model, embedded = flux(), []
    add_hook_to_module(model, CpuOffload(execution_device="cpu"))
    with h2_cache(model, plan=PLAN):
        wanted = run(model, named=False)
        other, shallow = copy.deepcopy(model), copy.copy(model)
        passes_of(other, embedded)
        with h2_cache(other, plan=PLAN):
            assert same(run(other, named=False), wanted)
        assert len(embedded) == PLAN.count("F")
        assert other._hf_hook is not model._hf_hook
        del model
        assert same(run(shallow, named=False), wanted)
        remove(shallow)
    assert torch.equal(run(shallow, 1)[0], wanted[0])


def test_hooks_of_others_on_the_transformer_are_called_at_each_step_and_change_nothing() -> None:
    model, seen = flux(), []
    with h2_cache(model, plan=PLAN):
        wanted = run(model)

    def look(_module: Any, _args: Any, output: Any) -> None:
        seen.append(output[0])

    before = model.register_forward_hook(look)
    with h2_cache(model, plan=PLAN):
        after = model.register_forward_hook(look)
        got = run(model)
    assert same(got, wanted) and len(seen) == 2 * STEPS
    for step, skipped in enumerate(SKIPPED):
        if skipped:
            assert seen[2 * step] is seen[2 * step + 1] is got[step]
    before.remove()
    after.remove()


def test_threads_that_share_a_transformer_skip_each_their_own_steps() -> None:
    """One thread is inside of a computed step, at each of its blocks, while the other one skips."""
    model, wanted = flux(), {}
    for index in range(2):
        with h2_cache(model, plan=PLAN[:6]):
            wanted[index] = run(model, 6, seed=index, named=False)
    got: dict[int, Any] = {}
    turns = threading.Barrier(2, timeout=300)
    hooks = [block.register_forward_pre_hook(lambda *_: time.sleep(0.001)) for block in model.transformer_blocks]

    def work(index: int) -> None:
        turns.wait()
        got[index] = run(model, 6, seed=index, named=False)

    with h2_cache(model, plan=PLAN[:6]) as trace:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for hook in hooks:
        hook.remove()
    assert all(same(got[index], wanted[index]) for index in range(2))
    assert sorted(step.blocks_run for step in trace.steps) == [0] * 6 + [5] * 6


def test_a_batch_of_which_some_pictures_skip_runs_the_transformer() -> None:
    pipe, embedded = flux_pipeline(), []
    passes_of(pipe.transformer, embedded)
    with h2_cache(pipe, tolerance=0.02) as trace:
        pipe(**run_kwargs(pipe, steps=12, prompt=["a cat", "a dog"]))
    every = [[s.skipped for s in trace.steps if s.step == step] for step in range(12)]
    assert len(embedded) == sum(not all(each) for each in every) < 12


MAKES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "FLUX.1, guidance": (flux_pipeline, {"negative_prompt": "a dog", "true_cfg_scale": 3.0}),
    "Chroma, guidance": (chroma_pipeline, {"guidance_scale": 3.0, "negative_prompt": "a dog"}),
    "FLUX.3, guidance": (flux3_pipeline, {}),
}


@pytest.mark.parametrize("name", MAKES)
def test_pipelines_run_no_part_of_the_transformer_in_skipped_steps(name: str) -> None:
    make, more = MAKES[name]
    pipe, calls = make(), []
    pipe.transformer.proj_out.register_forward_pre_hook(lambda *_: calls.append(1))
    arguments = run_kwargs(pipe, steps=8) | more
    with h2_cache(pipe, plan=PLAN) as trace:
        pipe(**arguments)
    assert len(trace.steps) == 16
    assert [step.skipped for step in trace.steps] == [each for each in SKIPPED for _ in range(2)]
    assert len(calls) == 2 * PLAN.count("F")


def test_an_output_with_more_than_a_velocity_is_left_to_the_transformer() -> None:
    class More(type(flux2())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return (*super().forward(*args, **kwargs), "more")

    model, embedded = flux2(), []
    model.__class__ = More
    passes_of(model, embedded)
    ids = position_ids(model) | prompt(model)
    with torch.no_grad(), h2_cache(model, plan="FFS") as trace:
        outputs = [model(**(latents(model, sigma) | ids), return_dict=False) for sigma in (1.0, 0.7, 0.3)]
    assert [output[1] for output in outputs] == ["more"] * 3
    assert len(embedded) == 3
    assert [step.blocks_run for step in trace.steps] == [5, 5, 0]
