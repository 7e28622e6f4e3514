"""Decisions, as pure functions: is this step guarded, and does a stage reuse what it kept."""

from __future__ import annotations

import math

from h2gen.cache.config import CacheConfig
from h2gen.cache.outcome import Outcome


def gate(change: float | None, tau: float) -> Outcome:
    """Decide one stage from its relative change.

    Args:
        change: relative change of the indicator since the last computed step; None when nothing is kept. A change
            that is not finite is a miss.
        tau: the stage's threshold.

    Returns:
        ``REUSED`` where ``change < tau`` (strictly), else ``COMPUTED``. Source: arXiv 2510.27171.
    """
    if change is not None and math.isfinite(change) and change < tau:
        return Outcome.REUSED
    return Outcome.COMPUTED


def is_guarded(config: CacheConfig, step: int, steps_total: int | None, since_full: int) -> bool:
    """Whether a guard makes this step a full one, whatever has changed.

    Args:
        config: the guards.
        step: index of the step in its trajectory, from 0.
        steps_total: steps in the trajectory; None when unknown, which leaves ``final_steps`` without effect.
        since_full: steps since the last full one.
    """
    if step < config.warmup_steps:
        return True
    if config.final_steps and steps_total is not None and step >= steps_total - config.final_steps:
        return True
    return 0 < config.max_consecutive <= since_full
