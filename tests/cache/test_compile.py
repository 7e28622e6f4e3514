"""torch.compile beside the cache: decisions stay outside of the compiled graphs. Compiled by ``eager``, which is fast
and exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from h2gen.cache import CacheConfig, apply, h2_cache
from tests.cache.drive import STEPS, flux, run, same, thresholds, trajectory


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def config_of(policy: str, model: Any) -> CacheConfig:
    if policy == "plan":
        return CacheConfig(plan="FFRDSFCS")
    return CacheConfig(**thresholds(model, 0.5, 0.7))


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["thresholds", "plan"])
@pytest.mark.parametrize("first", ["cache", "compile"])
def test_compiled_blocks_need_no_other_graph_on_hits_misses_or_without_the_cache(policy: str, first: str) -> None:
    model = flux()
    config = config_of(policy, model)
    with h2_cache(model, config) as trace:
        wanted = run(model)
    if first == "cache":
        got_trace = apply(model, config)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    if first == "compile":
        run(model, 1)
        got_trace = apply(model, config)
    run(model, 1)
    compiled = graphs()
    got_trace.clear()
    assert same(run(model), wanted)
    assert [step.blocks_run for step in got_trace.steps] == [step.blocks_run for step in trace.steps]
    assert min(step.blocks_run for step in trace.steps) < 5
    assert graphs() == compiled > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_the_whole_transformer_can_be_compiled_without_fullgraph(how: str) -> None:
    model = flux()
    config = config_of("plan", model)
    with h2_cache(model, config) as trace:
        wanted = run(model, named=False)
    compiled: Any = model
    if how == "in place":
        model.compile(backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")

    @torch.no_grad()
    def again() -> list[torch.Tensor]:
        return [compiled(**given, return_dict=False)[0] for _, given in trajectory(model)]

    with h2_cache(compiled, config) as got_trace:
        assert same(again(), wanted)
        seen = graphs()
        assert same(again(), wanted)
    assert graphs() == seen > 0
    assert [step.blocks_run for step in got_trace.steps[:STEPS]] == [step.blocks_run for step in trace.steps]


def test_with_fullgraph_torch_says_what_to_do() -> None:
    model = flux()
    model.compile(backend="eager", fullgraph=True)
    with h2_cache(model, plan="FR"), pytest.raises(Exception, match=r"H2-Cache.*compile_repeated_blocks"):
        run(model, 2)
