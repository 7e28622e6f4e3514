"""Decisions, as pure functions: is this step guarded, and does a stage reuse what it kept."""

from __future__ import annotations

import math
from enum import Enum

from h2gen.cache.config import CacheConfig


class Outcome(str, Enum):
    """What happened to one stage at one step."""

    COMPUTED = "computed"  #: its blocks ran: the change was too large, or there was nothing to compare with
    REUSED = "reused"  #: a hit: only its first block ran, the kept residual was added
    FORCED = "forced"  #: reused without a check, because the structure stage was a hit (the hierarchy)
    GUARDED = "guarded"  #: its blocks ran without a check, because a guard wanted a full step

    def __str__(self) -> str:
        return self.value

    @property
    def ran(self) -> bool:
        """Whether all blocks of the stage ran."""
        return self in (Outcome.COMPUTED, Outcome.GUARDED)


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
