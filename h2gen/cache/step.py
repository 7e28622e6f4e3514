"""One forward pass while it runs, and afterwards, until the device has caught up with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from h2gen.cache.clock import Stopwatch
from h2gen.cache.inputs import Inputs, as_timestep
from h2gen.cache.outcome import Outcome
from h2gen.cache.rows import Rows, Streams
from h2gen.cache.state import Branch, Run
from h2gen.cache.trace import StageRecord, StepRecord


class Step:
    """One forward pass while it runs.

    Lists hold a value for each picture of the batch.

    Args:
        outcomes: what becomes of the structure and of the detail stage of each, as far as that is known beforehand.
        timestep: 0 to 1000; a tensor where only the device knows.
        errors: how far each would be off if it were skipped, as far as that is known.
    """

    def __init__(
        self,
        run: Run,
        branch: Branch,
        inputs: Inputs,
        outcomes: Sequence[tuple[Outcome, Outcome]],
        timestep: float | torch.Tensor,
        errors: Sequence[float | None],
    ) -> None:
        self.run, self.branch, self.inputs = run, branch, inputs
        self.index = branch.step
        self.timestep = timestep
        self.errors = errors
        structure, detail = zip(*outcomes, strict=True)
        self.outcomes: dict[str, list[Outcome]] = {"structure": list(structure), "detail": list(detail)}
        self.changes: dict[str, list[float | None]] = {name: [None] * len(outcomes) for name in self.outcomes}
        self.present = [row for row, outcome in enumerate(structure) if outcome is not Outcome.SKIPPED]
        """The pictures that any block runs for."""
        self.running = self.present
        """Those that the next block runs for."""
        self.after_first: Streams = ()
        self.whole: Streams = ()
        """Of all pictures, as they came to the stage, where its blocks do not run for all."""
        self.aside: list[tuple[Rows, Streams]] = []
        """What the stage has made of those that its other blocks do not run for."""
        self.watch = Stopwatch(inputs.device)

    @property
    def pictures(self) -> int:
        """In the batch."""
        return len(self.outcomes["structure"])

    def ran(self, stage: str) -> set[int]:
        """The pictures for which all blocks of a stage run."""
        return {row for row, outcome in enumerate(self.outcomes[stage]) if outcome.ran}

    @property
    def skipped(self) -> bool:
        """Whether no block runs at all."""
        return not self.present

    @property
    def interval(self) -> float | None:
        """How far the picture moves along the velocity, in sigma, where the schedule says so."""
        schedule = self.run.schedule
        return None if schedule is None or schedule.intervals is None else schedule.intervals[self.index]

    @property
    def sigma(self) -> float:
        """Where on the schedule it is, 1 to 0; only for policies that need the time, which is then known."""
        assert isinstance(self.timestep, float)
        return self.timestep / 1000


class FinishedStep:
    """A picture's step whose time, and timestep, the device may still be on its way to."""

    def __init__(self, step: Step, picture: int, blocks_run: int, blocks_total: int) -> None:
        self._watch, self._timestep, self._pictures = step.watch, step.timestep, step.pictures
        self._rest: dict[str, Any] = {
            "run": step.run.index,
            "step": step.index,
            "context": step.branch.context,
            **{name: StageRecord(step.changes[name][picture], step.outcomes[name][picture]) for name in step.outcomes},
            "blocks_run": blocks_run,
            "blocks_total": blocks_total,
            "picture": picture,
            "error": step.errors[picture],
        }

    @property
    def ready(self) -> bool:
        return self._watch.ready

    def record(self) -> StepRecord:
        seconds = self._watch.seconds / self._pictures  # waits; the timestep's copy was queued before its end
        timestep = self._timestep if isinstance(self._timestep, float) else as_timestep(self._timestep)
        return StepRecord(timestep=timestep, sigma=timestep / 1000, seconds=seconds, **self._rest)
