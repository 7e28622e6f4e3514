"""diffusers' own caches, put on a transformer that has the cache already, are refused at the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import apply_first_block_cache, apply_pyramid_attention_broadcast

from h2gen.cache import h2_cache
from h2gen.errors import CacheError
from tests.cache.drive import flux, run, same, thresholds

PAB = PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)
CONFIGS = [
    FirstBlockCacheConfig(threshold=0.1),
    MagCacheConfig(num_inference_steps=8, mag_ratios=[1.0] * 8),
    PAB,
    FasterCacheConfig(current_timestep_callback=lambda: 500),
    TaylorSeerCacheConfig(),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_cache_of_diffusers_that_is_put_on_later_is_refused_by_name(config: Any) -> None:
    model = flux()
    with h2_cache(model, **thresholds(model, 0.5, 0.7)) as trace:
        wanted = run(model)
        records = len(trace.steps)
        model.enable_cache(config)
        with pytest.raises(CacheError, match=f"{type(config).__name__}.*disable_cache"):
            run(model)
        assert len(trace.steps) == records
        model.disable_cache()
        assert same(run(model), wanted)


@pytest.mark.parametrize(
    ("put_on", "config", "name"),
    [
        (apply_first_block_cache, FirstBlockCacheConfig(threshold=0.1), "fbc"),
        (apply_pyramid_attention_broadcast, PAB, "pyramid"),
    ],
    ids=["on blocks", "inside blocks"],
)
@pytest.mark.parametrize("first", ["ours", "diffusers'"])
def test_so_are_their_hooks_alone(first: str, put_on: Callable[..., Any], config: Any, name: str) -> None:
    model = flux()
    if first != "ours":
        put_on(model, config)
        with pytest.raises(CacheError, match=name), h2_cache(model, plan="FR"):
            pass
        return
    with h2_cache(model, plan="FR") as trace:
        put_on(model, config)
        with pytest.raises(CacheError, match=name):
            run(model)
    assert trace.steps == []
