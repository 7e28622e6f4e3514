"""One cache on one transformer: begins and ends its forward passes, and drives the method through their stages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from h2gen.cache.batch import Rows, Streams, replaced, rows_of
from h2gen.cache.config import CacheConfig
from h2gen.cache.decide_batch import BatchDecision
from h2gen.cache.inputs import Inputs
from h2gen.cache.memory import Memory
from h2gen.cache.method import Method, StageSteps
from h2gen.cache.policies import policy_of
from h2gen.cache.probe import Probe
from h2gen.cache.schedule import Course
from h2gen.cache.stages import Stage, stages_of
from h2gen.cache.step import FinishedStep, Step
from h2gen.cache.trace import Trace
from h2gen.cache.tracker import Tracker
from h2gen.cache.warn import WarnOnce
from h2gen.errors import CacheError
from h2gen.families import family_of


class Engine:
    """What the hooks call when the forward pass begins and ends, and when a stage's first and last block have run."""

    def __init__(
        self,
        transformer: nn.Module,
        config: CacheConfig,
        find_course: Callable[[Callable[[], float]], Course | None],
        trace: Trace,
    ) -> None:
        self.family, self.stages = family_of(transformer), stages_of(transformer)
        self.step: Step | None = None
        self._config, self._trace, self._policy = config, trace, policy_of(config)
        self.hooked = [stage for stage in self.stages if self._policy.skips or self._policy.reuses(stage.name)]
        new_memory = partial(Memory, config.forecast, config.tolerance > 0 and not config.plan)
        self._warn = WarnOnce()
        self.tracker = Tracker(config, find_course, new_memory, self.forget, self._warn)
        decide = BatchDecision(config, self._policy, self.family, self.tracker.begun_again, self._warn)
        self._method = Method(config, self._policy, decide)
        self._stage_steps: StageSteps | None = None
        self._blocks_total = sum(len(stage.blocks) for stage in self.stages)
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]

    # The transformer's forward pass begins and ends.

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out which step of which trajectory this is, and what is known beforehand."""
        if self.step is not None:  # the previous pass never ended: what it kept is half a step
            self.forget()
        inputs = Inputs(self.family, self.stages, {**dict(zip(self._names, args, strict=False)), **kwargs})
        run, current, timestep = self.tracker.follow(inputs)
        try:
            outlook = self._policy.before_step(run, current)
        except CacheError:
            self.forget()
            raise
        if outlook.warning:
            self._warn(outlook.warning)
        if not inputs.separable and len({*outlook.outcomes}) > 1:
            outlook = outlook._replace(outcomes=[self._policy.undecided] * inputs.pictures)
        self._trace.flush()
        self.step = Step(run, current, inputs, timestep, outlook)

    @torch.no_grad()
    def end(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """The transformer's output: its own, or the forecast for the pictures that skipped the step."""
        step, self.step, self._stage_steps = self.step, None, None
        if step is None:
            return output
        current, (structure, detail) = step.current, (step.ran(stage.name) for stage in self.stages)
        full, skipped = structure & detail, {*range(step.pictures)} - {*step.present}
        if self._policy.skips and (self._config.plan or step.run.schedule is not None):
            # With the detail reused as it was, the velocity is worse than the line through full ones (1 to 2 dB on the
            # bundled model); with the detail forecast it is better (0.5 dB). With the structure reused it never is.
            output = self._velocities(step, output, skipped, structure if self._config.forecast else full)
        step.watch.stop()
        computed = list(zip(self.stages, (structure, detail), strict=True))
        for row in range(step.pictures):
            current.since_full[row] = 0 if row in full else current.since_full[row] + 1
            ran = [len(stage.blocks) if row in rows else 1 for stage, rows in computed]
            self._trace.add(FinishedStep(step, row, 0 if row in skipped else sum(ran), self._blocks_total))
        return output

    def _velocities(self, step: Step, output: Any, skipped: set[int], fresh: set[int]) -> Any:
        """The output with forecast velocities for skipped steps, and corrected ones for the steps after them."""
        velocity, parts = self.family.velocity(output), []
        for row in sorted(skipped | fresh):
            history = step.current.memory.velocities[row]
            if row in skipped:
                parts.append(([row], history.forecast(step.sigma, step.interval)))
                continue
            own = rows_of(velocity, [row])
            corrected = history.keep(own, step.sigma, step.interval)
            if corrected is not own:
                parts.append(([row], corrected))
        return self.family.with_velocity(output, replaced(velocity, *parts)) if parts else output

    def forget(self) -> None:
        """Drop everything that is kept."""
        self.step = self._stage_steps = None
        self.tracker.forget()

    # A stage's first block has run, and its last.

    @property
    def pictures(self) -> int:
        """In the batch."""
        return 1 if self.step is None else self.step.pictures

    def rows(self, *, first: bool) -> Rows | None:
        """The pictures of the batch that a stage's first block, or the next one after it, runs for; None for all."""
        if self.step is None:
            return None
        rows = self.step.present if first else self.step.running
        return None if len(rows) == self.step.pictures else rows

    def skips(self, stage: Stage, *, first: bool = False) -> bool:
        """Whether the stage's first block, or the blocks after it, are skipped in this step."""
        return self.step is not None and (self.step.skipped or not (first or self.step.ran(stage.name)))

    def after_first(self, stage: Stage, probe: Probe) -> Streams:
        """The streams to continue with: those of the pictures that need the other blocks, or, if none does, all as
        the last block would have left them."""
        if self.step is None:
            return probe.after
        steps = self._method.structure_stage if stage.name == "structure" else self._method.detail_stage
        self._stage_steps = steps(self.step, stage, probe)
        return self._advance(None)

    def after_last(self, after: Streams) -> Streams:
        """The streams of all pictures, as they leave the stage."""
        return after if self._stage_steps is None else self._advance(after)

    def _advance(self, after: Streams | None) -> Streams:
        assert self._stage_steps is not None
        try:
            return self._stage_steps.send(after)  # type: ignore[arg-type]
        except StopIteration as left:
            self._stage_steps = None
            streams: Streams = left.value
            return streams
