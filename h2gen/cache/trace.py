"""What was decided at each step and what it cost: records and totals."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from h2gen.cache.outcome import Outcome

if TYPE_CHECKING:
    from h2gen.cache.step import FinishedStep


@dataclass(frozen=True)
class StageRecord:
    """One stage at one step: its relative change (None if it was not measured) and its outcome."""

    change: float | None
    outcome: Outcome

    @property
    def not_finite(self) -> bool:
        return self.change is not None and not math.isfinite(self.change)

    def to_json(self) -> dict[str, Any]:
        return {"change": None if self.not_finite else self.change, "outcome": self.outcome.value}


@dataclass(frozen=True)
class StepRecord:
    """One forward pass of the transformer, for one picture.

    ``run`` counts trajectories from 0, ``step`` the steps of one from 0, ``picture`` the pictures of a batch from 0,
    among which the pass's ``seconds`` are divided evenly. ``context`` is ``cond`` or ``uncond`` under true
    classifier-free guidance. ``timestep`` runs from 1000 to 0, ``sigma`` from 1 to 0. ``error`` is compared with a
    tolerance: how far the picture would be off if the step were skipped; None if not known, or without a tolerance.
    """

    run: int
    step: int
    context: str
    timestep: float
    sigma: float
    structure: StageRecord
    detail: StageRecord
    blocks_run: int
    blocks_total: int
    seconds: float
    picture: int = 0
    error: float | None = None

    @property
    def full(self) -> bool:
        """Whether every block ran."""
        return self.structure.outcome.ran and self.detail.outcome.ran

    @property
    def guarded(self) -> bool:
        """Whether every block ran because of a guard; a detail stage that was only too old does not count."""
        return self.structure.outcome is Outcome.GUARDED

    @property
    def skipped(self) -> bool:
        """Whether no block ran and the transformer's output was forecast."""
        return self.structure.outcome is Outcome.SKIPPED

    @property
    def all_reused(self) -> bool:
        """Whether both stages were reused, and their first blocks ran."""
        return not (self.structure.outcome.ran or self.detail.outcome.ran or self.skipped)

    @property
    def detail_reused(self) -> bool:
        """Whether the structure stage ran and the detail stage was reused."""
        return self.structure.outcome.ran and not self.detail.outcome.ran

    @property
    def structure_reused(self) -> bool:
        """Whether the structure stage was reused and the detail stage ran."""
        return not self.structure.outcome.ran and self.detail.outcome.ran

    def to_json(self) -> dict[str, Any]:
        """The step as written to a trace file. A change that is not finite becomes null: JSON has no NaN."""
        values = {name: value for name, value in vars(self).items() if name not in ("run", "picture", "error")}
        values |= {"structure": self.structure.to_json(), "detail": self.detail.to_json()}
        if self.picture:
            values["picture"] = self.picture
        if self.error is not None and math.isfinite(self.error):
            values["error"] = self.error
        return values


_KINDS = ("full", "detail_reused", "structure_reused", "all_reused", "skipped")  # exactly one is true of a step


@dataclass(frozen=True)
class Summary:
    """Totals over forward passes; ``steps`` is the sum of full, reused (of three kinds) and skipped ones.

    ``share`` is blocks run of all blocks, ``estimated_speedup`` its inverse, ``seconds`` what the passes took, and
    ``not_finite`` the number of changes that were NaN or Inf.
    """

    steps: int = 0
    full: int = 0
    detail_reused: int = 0
    all_reused: int = 0
    blocks_run: int = 0
    blocks_total: int = 0
    seconds: float = 0.0
    not_finite: int = 0
    structure_reused: int = 0
    skipped: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})

    @property
    def share(self) -> float:
        return self.blocks_run / self.blocks_total if self.blocks_total else 1.0

    @property
    def estimated_speedup(self) -> float:
        return 1 / self.share if self.share else math.inf

    def to_json(self) -> dict[str, Any]:
        """The totals as written to a trace file's last line."""
        return {
            "passes": self.steps,
            **{kind: getattr(self, kind) for kind in _KINDS},
            "blocks_run": self.blocks_run,
            "blocks_total": self.blocks_total,
            "share": self.share,
            "estimated_speedup": self.estimated_speedup if self.share else None,
            "seconds": self.seconds,
            "not_finite": self.not_finite,
        }


def summarize_steps(steps: Iterable[StepRecord]) -> Summary:
    """Add up the steps of one trajectory or of many."""
    records = list(steps)
    return Summary(
        **{kind: sum(getattr(record, kind) for record in records) for kind in _KINDS},
        steps=len(records),
        blocks_run=sum(record.blocks_run for record in records),
        blocks_total=sum(record.blocks_total for record in records),
        seconds=sum(record.seconds for record in records),
        not_finite=sum(stage.not_finite for record in records for stage in (record.structure, record.detail)),
    )


@dataclass
class Trace:
    """All steps since the cache was applied or ``clear`` was called. Reading them waits for those still running."""

    on_step: Callable[[StepRecord], None] | None = None
    _steps: list[StepRecord] = field(default_factory=list)
    _pending: deque[FinishedStep] = field(default_factory=deque)

    @property
    def steps(self) -> list[StepRecord]:
        self.flush(wait=True)
        return self._steps

    @property
    def summary(self) -> Summary:
        return summarize_steps(self.steps)

    @property
    def speedup(self) -> float:
        """Estimated from the share of blocks run; compare it with measured seconds before relying on it."""
        return self.summary.estimated_speedup

    def of_each_picture(self) -> list[Trace]:
        """One trace per picture of a batch, as if it had been made alone."""
        found: dict[int, list[StepRecord]] = {}
        for record in self.steps:
            found.setdefault(record.picture, []).append(replace(record, picture=0))
        return [Trace(_steps=found[picture]) for picture in sorted(found)]

    def clear(self) -> None:
        self._pending.clear()
        self._steps.clear()

    def add(self, step: FinishedStep) -> None:
        self._pending.append(step)
        self.flush()

    def flush(self, *, wait: bool = False) -> None:
        """Turn the steps that the device has finished into records, in order; with ``wait``, all of them."""
        while self._pending and (wait or self._pending[0].ready):
            record = self._pending.popleft().record()
            self._steps.append(record)
            if self.on_step is not None:
                self.on_step(record)
