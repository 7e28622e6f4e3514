"""One forward pass while it runs, and afterwards, until the device has caught up with it."""

from __future__ import annotations

from typing import Any

import torch

from h2gen.cache.clock import Stopwatch
from h2gen.cache.inputs import Inputs, as_timestep
from h2gen.cache.outcome import Outcome
from h2gen.cache.state import Branch, Run
from h2gen.cache.trace import StageRecord, StepRecord

Streams = tuple[torch.Tensor, ...]
"""Either ``(text, image)``, ``(B, N_txt, D)`` and ``(B, N_img, D)``, or one concatenated ``(B, N_txt + N_img, D)``."""


class Step:
    """One forward pass while it runs.

    Args:
        outcomes: what becomes of the structure and of the detail stage, as far as that is known beforehand.
        settled: whether it is, so that nothing is to be measured.
        timestep: 0 to 1000; a tensor where only the device knows.
    """

    def __init__(
        self,
        run: Run,
        branch: Branch,
        inputs: Inputs,
        outcomes: tuple[Outcome, Outcome],
        settled: bool,
        timestep: float | torch.Tensor,
    ) -> None:
        self.run, self.branch, self.inputs, self.settled = run, branch, inputs, settled
        self.index = branch.step
        self.timestep = timestep
        self.changes: dict[str, float | None] = {"structure": None, "detail": None}
        self.outcomes = dict(zip(("structure", "detail"), outcomes, strict=True))
        self.after_first: Streams = ()
        self.watch = Stopwatch(inputs.device)

    @property
    def guarded(self) -> bool:
        """Whether a guard wants it full."""
        return self.outcomes["structure"] is Outcome.GUARDED

    @property
    def skipped(self) -> bool:
        """Whether no block runs."""
        return self.outcomes["structure"] is Outcome.SKIPPED

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
    """A step whose time, and timestep, the device may still be on its way to."""

    def __init__(self, step: Step, blocks_run: int, blocks_total: int) -> None:
        self._watch, self._timestep = step.watch, step.timestep
        self._rest: dict[str, Any] = {
            "run": step.run.index,
            "step": step.index,
            "context": step.branch.context,
            **{name: StageRecord(step.changes[name], step.outcomes[name]) for name in ("structure", "detail")},
            "blocks_run": blocks_run,
            "blocks_total": blocks_total,
        }

    @property
    def ready(self) -> bool:
        return self._watch.ready

    def record(self) -> StepRecord:
        seconds = self._watch.seconds  # waits; the timestep's copy was queued before its end
        timestep = self._timestep if isinstance(self._timestep, float) else as_timestep(self._timestep)
        return StepRecord(timestep=timestep, sigma=timestep / 1000, seconds=seconds, **self._rest)
