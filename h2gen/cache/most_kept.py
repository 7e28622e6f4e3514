"""How much the cache keeps from step to step, before anything runs. Loads no torch."""

from __future__ import annotations

from typing import NamedTuple

from h2gen.cache.config import CacheConfig
from h2gen.cache.policies import policy_of


class Kept(NamedTuple):
    """What the cache keeps of one picture, at most.

    Args:
        tokens: vectors as wide as the streams, on the device: residuals of the stages.
        values: other values there: velocities, in the model's dtype.
        host_tokens: vectors in main memory, with ``--cache-memory cpu``.
    """

    tokens: int
    values: int
    host_tokens: int = 0


def most_kept(config: CacheConfig, image_tokens: int, text_tokens: int, channels: int, passes: int = 1) -> Kept:
    """What the cache keeps of one picture at most; see ``Memory``.

    Args:
        config: of the cache.
        image_tokens: of the picture, and of its references.
        text_tokens: of its prompt.
        channels: of a velocity, per token.
        passes: per step: 2 with true guidance.
    """
    if not config.enabled:
        return Kept(0, 0)
    policy = policy_of(config)
    structure = image_tokens + text_tokens if policy.reuses("structure") else 0
    detail = image_tokens if policy.reuses("detail") else 0  # the model drops the text after this stage
    velocities = 2 * image_tokens * channels if policy.skips else 0  # the last one, and the way to it
    tokens = passes * (structure + detail) * (1 + config.forecast)
    here, there = (0, tokens) if config.cache_memory == "cpu" else (tokens, 0)
    return Kept(here, passes * velocities, there)


def vector_bytes(cache_memory: str, width: int, value: int) -> int:
    """Bytes of one token's vector as ``Packed`` keeps it on the device.

    Args:
        cache_memory: of the configuration.
        width: values of the vector.
        value: bytes of a value in the model's dtype.
    """
    if cache_memory == "fp8":
        return width + 4  # a scale per token, in fp32
    return width * (min(value, 2) if cache_memory == "bf16" else value)


def keeps_residuals(config: CacheConfig) -> bool:
    """Whether any stage may be reused, so that its residuals are kept."""
    return config.enabled and any(map(policy_of(config).reuses, ("structure", "detail")))
