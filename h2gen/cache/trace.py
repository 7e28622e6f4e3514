"""What was decided at each step, at what cost: records, totals, and the thresholds that would have reused something."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from h2gen.cache.outcome import Outcome


@dataclass(frozen=True)
class StageRecord:
    """One stage at one step: its relative change (None where none was measured) and what became of it."""

    change: float | None
    outcome: Outcome


@dataclass(frozen=True)
class StepRecord:
    """One forward pass of the transformer, for one picture.

    ``run`` counts trajectories from 0, ``step`` the steps of one trajectory from 0; ``context`` is ``cond`` or
    ``uncond`` under true classifier-free guidance. ``timestep`` runs from 1000 to 0, ``sigma`` from 1 to 0.
    ``picture`` counts the pictures of a batch from 0; the pass's ``seconds`` are divided evenly among them.
    ``error`` is what a tolerance is compared with: how far the picture would be off if the step were skipped; None
    where that was not known, or there is no tolerance.
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
        """Whether every block ran because a guard wanted it; a detail stage that was merely too old does not count."""
        return self.structure.outcome is Outcome.GUARDED

    @property
    def skipped(self) -> bool:
        """Whether no block ran: the transformer's output was forecast."""
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
        """The step as the trace file holds it. A change that is not finite is written as null: JSON has no NaN."""

        def stage(record: StageRecord) -> dict[str, Any]:
            finite = record.change is not None and math.isfinite(record.change)
            return {"change": record.change if finite else None, "outcome": record.outcome.value}

        return {
            "step": self.step,
            "context": self.context,
            "timestep": self.timestep,
            "sigma": self.sigma,
            "structure": stage(self.structure),
            "detail": stage(self.detail),
            "blocks_run": self.blocks_run,
            "blocks_total": self.blocks_total,
            "seconds": self.seconds,
            **({"picture": self.picture} if self.picture else {}),
            **({} if self.error is None or not math.isfinite(self.error) else {"error": self.error}),
        }


@dataclass(frozen=True)
class Summary:
    """Totals over forward passes: ``steps`` = ``full`` + ``detail_reused`` + ``structure_reused`` + ``all_reused`` +
    ``skipped``.

    ``share`` is blocks run of all blocks, ``estimated_speedup`` its inverse, ``seconds`` what the passes took, and
    ``not_finite`` how many changes were NaN or Inf.
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
        """The totals as the trace file's last line holds them."""
        return {
            "steps": self.steps,
            "full": self.full,
            "detail_reused": self.detail_reused,
            "structure_reused": self.structure_reused,
            "all_reused": self.all_reused,
            "skipped": self.skipped,
            "blocks_run": self.blocks_run,
            "blocks_total": self.blocks_total,
            "share": self.share,
            "estimated_speedup": self.estimated_speedup if self.share else None,
            "seconds": self.seconds,
            "not_finite": self.not_finite,
        }


def summarize_steps(steps: Iterable[StepRecord]) -> Summary:
    """Add up steps, of one trajectory or of many."""
    records = list(steps)
    outcomes = ("full", "detail_reused", "structure_reused", "all_reused", "skipped")
    return Summary(
        **{name: sum(getattr(record, name) for record in records) for name in outcomes},
        steps=len(records),
        blocks_run=sum(record.blocks_run for record in records),
        blocks_total=sum(record.blocks_total for record in records),
        seconds=sum(record.seconds for record in records),
        not_finite=sum(
            stage.change is not None and not math.isfinite(stage.change)
            for record in records
            for stage in (record.structure, record.detail)
        ),
    )


def suggest_thresholds(steps: Iterable[StepRecord]) -> tuple[float | None, float | None]:
    """Thresholds just above the median change that each stage showed; None for a stage that showed none.

    Meant for a run that never reused anything: there every change is one from step to step, so that these thresholds
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


class PendingStep(Protocol):
    """A step whose time the device may still be measuring."""

    @property
    def ready(self) -> bool: ...

    def record(self) -> StepRecord: ...


@dataclass
class Trace:
    """All steps since the cache was applied (or since ``clear``), and their totals.

    Reading ``steps`` or ``summary`` waits for the device where the last steps are still running on it.
    """

    on_step: Callable[[StepRecord], None] | None = None
    _steps: list[StepRecord] = field(default_factory=list)
    _pending: deque[PendingStep] = field(default_factory=deque)

    @property
    def steps(self) -> list[StepRecord]:
        self.flush(wait=True)
        return self._steps

    @property
    def summary(self) -> Summary:
        return summarize_steps(self.steps)

    @property
    def speedup(self) -> float:
        """The estimate from the share of blocks run; compare it with measured seconds before believing it."""
        return self.summary.estimated_speedup

    def of_each_picture(self) -> list[Trace]:
        """A trace of each picture of a batch, as it would be of the picture alone."""
        found: dict[int, list[StepRecord]] = {}
        for record in self.steps:
            found.setdefault(record.picture, []).append(replace(record, picture=0))
        return [Trace(_steps=found[picture]) for picture in sorted(found)]

    def clear(self) -> None:
        self._pending.clear()
        self._steps.clear()

    def add(self, step: PendingStep) -> None:
        self._pending.append(step)
        self.flush()

    def flush(self, *, wait: bool = False) -> None:
        """Turn the steps that the device has finished into records, in order; with ``wait``, all of them."""
        while self._pending and (wait or self._pending[0].ready):
            record = self._pending.popleft().record()
            self._steps.append(record)
            if self.on_step is not None:
                self.on_step(record)
