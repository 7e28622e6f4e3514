"""Blocks are counted when they compute, so every cache is counted in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from torch import nn

import h2gen
from h2gen.errors import CacheError
from h2gen.evaluation.block_count import count_blocks
from tests.small import flux2_klein_pipeline, flux2_transformer, flux_pipeline, flux_transformer, run_kwargs

BLOCKS = 24  # of the bundled model


def attributes(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any], list[str]]]:
    return [(module, dict(vars(module)), list(module._modules)) for module in model.modules()]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_without_a_cache_every_block_runs_at_every_pass(tiny: h2gen.Session) -> None:
    with count_blocks(tiny.pipe.transformer) as count:
        tiny.generate("a cat", seed=1, steps=3, cfg=1, cache=None)
        assert (count.run, count.total, count.share) == (3 * BLOCKS, 3 * BLOCKS, 1)
        tiny.generate("a cat", seed=1, steps=2, cfg=3, cache=None)
    assert (count.run, count.total) == (7 * BLOCKS, 7 * BLOCKS)


@pytest.mark.parametrize("cfg", [1, 3])
def test_it_counts_what_the_trace_of_h2_cache_says(tiny: h2gen.Session, cfg: float) -> None:
    config = h2gen.CacheConfig(tau1=0.12, tau2=0.3)
    with count_blocks(tiny.pipe.transformer) as count:
        result = tiny.generate("a cat", seed=7, steps=16, cfg=cfg, cache=config)
    assert result.trace is not None
    summary = result.trace.summary
    assert min(summary.full, summary.detail_reused, summary.all_reused) > 0
    assert (count.run, count.total) == (summary.blocks_run, summary.blocks_total)


@pytest.mark.parametrize("cfg", [1, 3])
@pytest.mark.parametrize(
    "policy", [{"tolerance": 0.03}, {"plan": "FFSRSDSFSS"}, {"plan": "FFSSFSSSFS", "tolerance": 0.02}]
)
def test_what_h2_cache_says_of_skipped_steps_is_what_did_not_run(
    tiny: h2gen.Session, policy: dict[str, Any], cfg: float
) -> None:
    config = h2gen.CacheConfig(tau1=0, tau2=0, forecast=1, **policy)
    with count_blocks(tiny.pipe.transformer) as count:
        result = tiny.generate("a cat", seed=7, steps=10, cfg=cfg, cache=config)
    assert result.trace is not None
    summary = result.trace.summary
    assert summary.skipped >= 3 * cfg // 2
    assert (count.run, count.total) == (summary.blocks_run, summary.blocks_total)


@pytest.mark.parametrize("make", [flux_pipeline, flux2_klein_pipeline])
def test_it_counts_the_blocks_of_both_architectures(make: Callable[..., Any]) -> None:
    pipe = make(layers=2, single_layers=3)
    with count_blocks(pipe.transformer) as plain:
        pipe(**run_kwargs(pipe, steps=4))
    with count_blocks(pipe.transformer) as cached, h2gen.h2_cache(pipe.transformer, tau1=1e9) as trace:
        pipe(**run_kwargs(pipe, steps=4))
    assert (plain.run, plain.total) == (20, 20)
    assert (cached.run, cached.total) == (trace.summary.blocks_run, 20) == (5 + 3 * 2, 20)


def test_fused_projections_count_the_same() -> None:
    pipe = flux_pipeline(layers=2, single_layers=3)
    pipe.transformer.fuse_qkv_projections()
    with count_blocks(pipe.transformer) as count:
        pipe(**run_kwargs(pipe, steps=2))
    assert (count.run, count.total) == (10, 10)


def test_a_first_block_cache_that_always_hits_runs_one_block_a_pass(tiny: h2gen.Session) -> None:
    transformer = tiny.pipe.transformer
    with count_blocks(transformer) as count:
        transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
        try:
            tiny.generate("a cat", seed=1, steps=5, cfg=1, cache=None)
        finally:
            transformer.disable_cache()
    assert count.run == BLOCKS + 4


def test_a_block_whose_attention_alone_is_reused_counts_half(tiny: h2gen.Session) -> None:
    transformer = tiny.pipe.transformer
    with count_blocks(transformer) as count:
        transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=100, disable_cache_before_step=3))
        try:
            tiny.generate("a cat", seed=1, steps=6, cfg=1, cache=None)  # computes steps 0, 1, 2 and 4
        finally:
            transformer.disable_cache()
    assert (count.run, count.total) == (4 * BLOCKS + 2 * BLOCKS / 2, 6 * BLOCKS)


def test_it_leaves_the_model_as_it_was_after_an_error_too(tiny: h2gen.Session) -> None:
    transformer = tiny.pipe.transformer
    before, hooked = attributes(transformer), hooks(transformer)
    with pytest.raises(RuntimeError, match="out of paint"), count_blocks(transformer):
        assert hooks(transformer) > hooked
        raise RuntimeError("out of paint")
    assert attributes(transformer) == before
    assert hooks(transformer) == hooked


def test_counting_does_not_change_the_picture(tiny: h2gen.Session) -> None:
    plain = tiny.generate("a cat", seed=3, steps=3, cfg=1, cache=None).image
    with count_blocks(tiny.pipe.transformer):
        counted = tiny.generate("a cat", seed=3, steps=3, cfg=1, cache=None).image
    assert counted.tobytes() == plain.tobytes()


def test_counts_nest_and_go_on_from_picture_to_picture() -> None:
    pipe = flux_pipeline(layers=1, single_layers=1)
    with count_blocks(pipe.transformer) as outer:
        pipe(**run_kwargs(pipe, steps=2))
        with count_blocks(pipe.transformer) as inner:
            pipe(**run_kwargs(pipe, steps=3))
    assert (outer.total, inner.total) == (10, 6)


@pytest.mark.parametrize("model", [flux_transformer, flux2_transformer])
def test_before_anything_ran_the_share_is_whole(model: Callable[[], nn.Module]) -> None:
    with count_blocks(model()) as count:
        assert (count.run, count.total, count.share) == (0, 0, 1)


def test_another_model_is_refused() -> None:
    with pytest.raises(CacheError, match="which blocks Linear has; give stages="), count_blocks(torch.nn.Linear(1, 1)):
        raise AssertionError
