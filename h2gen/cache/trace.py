"""What was decided at each step and what it cost: one record per pass, and their totals."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from h2gen.cache.kept import KeptBytes
from h2gen.cache.outcome import Outcome
from h2gen.cache.summary import Summary, summarize_steps

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
    classifier-free guidance, and ``cond 2`` where a step runs the prompt a second time, through changed blocks.
    ``timestep`` runs from 1000 to 0, ``sigma`` from 1 to 0. ``error`` is compared with a tolerance: how far the picture
    would be off if the step were skipped; None if not known, or without a tolerance. ``exact`` are the blocks that did
    not run because their result is the same at every step, bit for bit. A block that sees only a part of the tokens
    counts as that part of a block.
    """

    run: int
    step: int
    context: str
    timestep: float
    sigma: float
    structure: StageRecord
    detail: StageRecord
    blocks_run: float
    blocks_total: float
    seconds: float
    picture: int = 0
    error: float | None = None
    exact: float = 0

    @property
    def full(self) -> bool:
        """Whether every block ran whose result could have changed."""
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
        values = {name: value for name, value in vars(self).items() if name not in ("run", "picture", "error", "exact")}
        values |= {"structure": self.structure.to_json(), "detail": self.detail.to_json()}
        if self.picture:
            values["picture"] = self.picture
        if self.exact:
            values["exact"] = self.exact
        if self.error is not None and math.isfinite(self.error):
            values["error"] = self.error
        return values


@dataclass
class Trace:
    """All steps since the cache was applied or ``clear`` was called. Reading them waits for those still running.

    Threads may add to it and read it at the same time. A copy or pickle has the steps so far, and no ``on_step``.
    ``reference`` is the number of passes of the uncached run that totals are a share of, per pass of this one: other
    than 1 if this one takes more or fewer steps, or a solver with more passes per step. ``kept`` is the size of what
    was kept of one picture, at most at a time.
    """

    on_step: Callable[[StepRecord], None] | None = None
    reference: float = 1.0
    kept: KeptBytes = field(default_factory=KeptBytes, compare=False)
    _steps: list[StepRecord] = field(default_factory=list)
    _pending: deque[FinishedStep] = field(default_factory=deque)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @property
    def steps(self) -> list[StepRecord]:
        self.flush(wait=True)
        return self._steps

    @property
    def summary(self) -> Summary:
        return summarize_steps(self.steps).against(self.reference)

    @property
    def estimated_speedup(self) -> float:
        """From the share of blocks run; compare it with measured seconds before relying on it."""
        return self.summary.estimated_speedup

    speedup = estimated_speedup
    """The old name."""

    def of_each_picture(self) -> list[Trace]:
        """One trace per picture of a batch, as if it had been made alone."""
        found: dict[int, list[StepRecord]] = {}
        for record in self.steps:
            found.setdefault(record.picture, []).append(replace(record, picture=0))
        return [Trace(reference=self.reference, kept=self.kept, _steps=found[each]) for each in sorted(found)]

    def clear(self) -> None:
        with self._lock:
            self._pending.clear()
            self._steps.clear()
            self.kept = KeptBytes()

    def add(self, step: FinishedStep) -> None:
        self._pending.append(step)
        self.kept = max(self.kept, step.kept, key=lambda kept: kept.total)
        self.flush()

    def flush(self, *, wait: bool = False) -> None:
        """Turn the steps that the device has finished into records, in order; with ``wait``, all of them."""
        with self._lock:
            while self._pending and (wait or self._pending[0].ready):
                record = self._pending.popleft().record()
                self._steps.append(record)
                if self.on_step is not None:
                    self.on_step(record)

    def __reduce__(self) -> Any:
        return Trace, (None, self.reference, self.kept, [*self.steps])
