"""What the cache will keep is known before it runs, and is what it then keeps."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from h2gen.cache import CacheConfig, h2_cache
from h2gen.cache.keep import Packed
from h2gen.cache.memory import Memory
from h2gen.cache.most_kept import most_kept, vector_bytes
from tests.small import flux_pipeline, run_kwargs


def bytes_kept(memories: list[Memory]) -> int:
    """Of residuals and velocities, each storage once."""
    found: dict[int, int] = {}
    for memory in memories:
        tensors = []
        for stage in (memory.structure, memory.detail):
            kept: Any = getattr(stage.residuals._values, "_kept", stage.residuals._values)
            for each in (tensor for value in kept for tensor in value):
                packed = isinstance(each, Packed)
                tensors += each.tensors if packed else [each]
        for history in memory.velocities:
            tensors += [tensor for _, tensor in filter(None, (history._last, history._way))]
        found |= {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(
    "given",
    [
        {"tau1": 1e-9, "tau2": 1e-9},
        {"tau1": 1e-9, "tau2": 1e-9, "forecast": 1},
        {"tau1": 0.0, "tau2": 1e-9},
        {"tolerance": 1e-9},
        {"plan": "FFFFSF"},
        {"plan": "FFFFDF", "forecast": 1},
        {"plan": "FFFFRF"},
        {"tau1": 0.0, "tau2": 0.0},
        {"tau1": 1e-9, "tau2": 1e-9, "cache_memory": "bf16"},
        {"tau1": 1e-9, "tau2": 1e-9, "cache_memory": "fp8", "forecast": 1},
        {"tau1": 1e-9, "tau2": 1e-9, "cache_memory": "cpu", "forecast": 1},
    ],
    ids=str,
)
def test_it_keeps_what_was_computed(given: dict[str, Any], cfg: float) -> None:
    pipe, config, seen = flux_pipeline(), CacheConfig(**given), []
    guided = {"negative_prompt": "a dog", "true_cfg_scale": cfg} if cfg > 1 else {}
    before = [each for each in gc.get_objects() if isinstance(each, Memory)]  # held, so that no new one has their ids

    def look(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step < 4:  # all has been computed, and skipped or reused
            return kwargs
        memories = [each for each in gc.get_objects() if isinstance(each, Memory) and id(each) not in map(id, before)]
        seen.append(bytes_kept(memories))
        return kwargs

    arguments = run_kwargs(pipe, steps=6)
    with h2_cache(pipe, config):
        pipe(**arguments, **guided, callback_on_step_end=look)
    side, multiple = arguments["height"], 2 * pipe.vae_scale_factor
    image, text = (side // multiple) ** 2, arguments["max_sequence_length"]
    channels = pipe.transformer.config.in_channels
    kept = most_kept(config, image, text, channels, 2 if cfg > 1 else 1)
    width = pipe.transformer.config.num_attention_heads * pipe.transformer.config.attention_head_dim
    assert (kept.tokens == 0) == (config.cache_memory == "cpu" or kept.host_tokens + kept.tokens == 0)
    tokens = kept.tokens + kept.host_tokens
    assert max(seen) == tokens * vector_bytes(config.cache_memory, width, 4) + 4 * kept.values
