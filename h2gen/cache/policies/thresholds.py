"""Thresholds, the paper's own policy: each stage decides by its change once its first block has run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from h2gen.cache.outcome import UNDECIDED, Decision, Outcome, Outlook
from h2gen.cache.policies.guards import is_guarded

if TYPE_CHECKING:
    from h2gen.cache.config import CacheConfig
    from h2gen.cache.passes import Pass
    from h2gen.cache.trace import StepRecord
    from h2gen.cache.trajectory import Run

GUARDED = Outcome.GUARDED, Outcome.GUARDED


@dataclass(frozen=True)
class Thresholds:
    """``tau1`` and ``tau2`` of a configuration, with its guards. Both at 0 compute every step in full."""

    config: CacheConfig
    skips: ClassVar[bool] = False
    """Whether whole steps may be skipped."""

    def tau(self, stage: str) -> float:
        """A stage's threshold; 0 if it is never checked."""
        return self.config.tau1 if stage == "structure" else self.config.tau2

    def reuses(self, stage: str) -> bool:
        """Whether the stage's residual may ever be reused. The detail's may also be after a structure hit."""
        return self.config.tau1 > 0 or self.tau(stage) > 0

    @property
    def undecided(self) -> tuple[Decision, Decision]:
        """The outlook of a step that only the thresholds decide."""
        return (
            UNDECIDED if self.reuses("structure") else Outcome.COMPUTED,
            UNDECIDED if self.reuses("detail") else Outcome.COMPUTED,
        )

    def guards(self, run: Run, step: int, since_full: int) -> bool:
        """Whether a guard makes a step a full one for a picture whose last full step was ``since_full`` steps ago."""
        return is_guarded(self.config, step, run.steps_total, since_full)

    def before_step(self, run: Run, current: Pass) -> Outlook:
        """The outlook of the coming step: guarded, or not decided yet."""
        outcomes = [
            GUARDED if self.guards(run, current.step, steps) else self.undecided for steps in current.since_full
        ]
        return Outlook(outcomes, [None] * len(outcomes))


def suggest_thresholds(steps: Iterable[StepRecord]) -> tuple[float | None, float | None]:
    """Thresholds just above the median change that each stage showed; None for a stage that showed none.

    Meant for a run that never reused anything: its changes are all from step to step, so these thresholds
    would have reused about every second step.
    """
    records = list(steps)

    def above_median(changes: list[float]) -> float | None:
        finite = sorted(change for change in changes if math.isfinite(change))
        if not finite:
            return None
        return math.floor(finite[len(finite) // 2] * 100 + 1) / 100

    return (
        above_median([r.structure.change for r in records if r.structure.change is not None]),
        above_median([r.detail.change for r in records if r.detail.change is not None]),
    )
