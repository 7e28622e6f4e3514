"""A copy of a model that has the cache on is a model without it."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from h2gen.cache import CacheConfig, apply, h2_cache, remove
from tests.cache.drive import both_models, flux, run, same, thresholds, untraced
from tests.cache.test_apply import footprint
from tests.small import flux_pipeline, run_kwargs


def saved(model: torch.nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}
each_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@both_models
@each_copy
def test_a_copy_runs_its_own_blocks_without_the_cache(make: Any, copied: Callable[[Any], Any]) -> None:
    model = make()
    plain = run(model)
    trace = apply(model, CacheConfig(plan="FRRRRRRR"))
    cached = run(model)
    trace.clear()
    other = copied(model)
    assert same(run(other), plain)
    assert trace.steps == []
    with torch.no_grad():
        for block in other.transformer_blocks:
            for parameter in block.parameters():
                parameter.zero_()
    assert not same(run(other), plain)
    assert same(run(model), cached)  # which still has the cache, and its own weights


@each_copy
def test_a_copy_takes_a_cache_of_its_own(copied: Callable[[Any], Any]) -> None:
    model = flux()
    tau = thresholds(model, 0.5, 0.7)
    with h2_cache(model, **tau):
        wanted = run(model)
        other = copied(model)
        before = footprint(other)
        with h2_cache(other, **tau) as trace:
            assert same(run(other), wanted)
        assert len(trace.steps) == len(wanted)
        assert footprint(other).keys() == before.keys()
        remove(other)
        assert same(run(model), wanted)


def test_a_copy_sets_its_own_contexts_once_the_original_is_gone() -> None:
    model = flux()
    plain = run(model, 2)
    apply(model, CacheConfig(plan="FR"))
    other = copy.deepcopy(model)
    del model
    assert same(run(other, 2), plain)


def test_a_shallow_copy_shares_the_cache() -> None:
    model = flux()
    before = footprint(model)
    trace = apply(model, CacheConfig(plan="FR"))
    other = copy.copy(model)
    run(other, 2, named=False)
    assert [step.blocks_run for step in trace.steps] == [5, 2]
    remove(other)
    assert footprint(model) == before


def test_a_pipeline_can_be_copied() -> None:
    pipe = flux_pipeline()
    plain = pipe(**run_kwargs(pipe, steps=3)).images
    with h2_cache(pipe, plan="FRR"):
        cached = pipe(**run_kwargs(pipe, steps=3)).images
        other = copy.deepcopy(pipe)
        assert (other(**run_kwargs(other, steps=3)).images == plain).all()
        assert (pipe(**run_kwargs(pipe, steps=3)).images == cached).all()
    assert (cached != plain).any()


def test_the_weights_can_be_saved_with_the_cache_on(tmp_path: Path) -> None:
    model = flux()
    plain = run(model, 2)
    apply(model, CacheConfig(plan="FR"))
    model.save_pretrained(tmp_path)
    assert same(run(type(model).from_pretrained(tmp_path), 2), plain)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda trace: pickle.loads(pickle.dumps(trace))])
def test_a_trace_can_be_copied(how: Callable[[Any], Any]) -> None:
    model = flux()
    with h2_cache(model, plan="FR", on_step=lambda _step: None) as trace:
        run(model, 2)
    copied = how(trace)
    assert copied.steps == trace.steps
    assert copied.summary == trace.summary
    trace.clear()
    assert len(copied.steps) == 2


@untraced
def test_a_model_with_the_cache_on_is_freed_without_a_collection() -> None:
    gc.collect()
    gc.disable()
    try:
        model = flux()
        apply(model, CacheConfig(plan="FR"))
        run(model, 2, named=False)  # diffusers' registry of contexts would be a cycle
        reference = weakref.ref(model.transformer_blocks[0])
        del model
        assert reference() is None
    finally:
        gc.enable()
