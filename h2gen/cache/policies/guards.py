"""Guards: steps that are always computed in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from h2gen.cache.config import CacheConfig


def is_guarded(config: CacheConfig, step: int, steps_total: int | None, since_full: int) -> bool:
    """Whether a guard makes this step a full one.

    Args:
        config: ``warmup_steps``, ``final_steps`` and ``max_consecutive``.
        step: index of the step in its trajectory, from 0.
        steps_total: number of steps in the trajectory; None if unknown, which leaves ``final_steps`` without effect.
        since_full: number of steps since the last full one.
    """
    if step < config.warmup_steps:
        return True
    if config.final_steps and steps_total is not None and step >= steps_total - config.final_steps:
        return True
    return 0 < config.max_consecutive <= since_full
