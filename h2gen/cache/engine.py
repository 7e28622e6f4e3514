"""One trajectory at a time: begins and ends its forward passes, and drives the method through their stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from h2gen.cache.batch import Rows, Streams
from h2gen.cache.config import CacheConfig
from h2gen.cache.decide_batch import BatchDecision
from h2gen.cache.inputs import Inputs
from h2gen.cache.memory import Memory
from h2gen.cache.method import Method, StageSteps
from h2gen.cache.outputs import Outputs
from h2gen.cache.policies import policy_of
from h2gen.cache.probe import Probe
from h2gen.cache.schedule import Course
from h2gen.cache.stages import Stage
from h2gen.cache.step import FinishedStep, Step
from h2gen.cache.trace import Trace
from h2gen.cache.tracker import ContextName, Tracker
from h2gen.errors import CacheError
from h2gen.families import Family


class Shared(NamedTuple):
    """What the callers of one transformer have in common.

    Args:
        family: of the transformer.
        config: of the cache.
        find_course: see ``Tracker``.
        trace: gets every step.
        warn: warns the user, once per message.
        context: the name of the current thread's next forward pass.
        numbers: of trajectories, from 0.
    """

    family: Family
    config: CacheConfig
    find_course: Callable[[Callable[[], float]], Course | None]
    trace: Trace
    warn: Callable[[str], None]
    context: ContextName
    numbers: Iterator[int]


class Engine:
    """What the hooks call when the forward pass begins and ends, and when a stage's first and last block have run."""

    def __init__(self, shared: Shared) -> None:
        self.family, config, find_course, self._trace, self._warn, context, numbers = shared
        self.step: Step | None = None
        self.busy = False
        """Whether a pass runs, with or without a step."""
        self.thread: int | None = None
        """The thread of the last pass."""
        self.config, self.policy = config, policy_of(config)
        new_memory = partial(Memory, config.forecast, config.tolerance > 0, config.cache_memory)
        self.tracker = Tracker(config, find_course, new_memory, self.forget, self._warn, context, numbers)
        decide = BatchDecision(config, self.policy, self.family, self.tracker.begun_again, self._warn)
        self._method, self.outputs = Method(config, self.policy, decide), Outputs(self.family)
        self.stages: Sequence[Stage] = ()
        self.own: Sequence[Stage] = ()  # before the stages
        self._stage_steps: StageSteps | None = None

    # The transformer's forward pass begins and ends.

    def knows(self, inputs: Inputs) -> bool:
        """Whether a forward pass belongs to the current trajectory."""
        return self.tracker.knows(inputs)

    def begin(self, stages: Sequence[Stage], inputs: Inputs, own: Sequence[Stage] = ()) -> None:
        """Find out which step of which trajectory this is, and what is known beforehand."""
        if self.step is not None:  # the previous pass never ended: what it kept is half a step
            self.forget()
        run, current, timestep = self.tracker.follow(inputs)
        try:
            outlook = self.policy.before_step(run, current)
        except CacheError:
            self.forget()
            raise
        if outlook.warning:
            self._warn(outlook.warning)
        if not inputs.separable and len({*outlook.outcomes}) > 1:
            outlook = outlook._replace(outcomes=[self.policy.undecided] * inputs.pictures)
        self._trace.flush()
        self.stages, self.own = stages, own
        self.step = step = Step(run, current, inputs, timestep, outlook)
        step.whole = {stage.name for stage in (*own, *stages) if self._only_runs(step, stage)}
        step.through = {*step.whole}
        if any(self.policy.tau(stage.name) for stage in stages):
            _ = step.picture_tokens  # queued now, read when a change is measured

    def _only_runs(self, step: Step, stage: Stage) -> bool:
        """Whether it is known that a stage runs for all pictures, and nothing of it is measured or kept."""
        if len(step.present) < step.pictures or stage.name in step.inputs.constants:
            return False
        return stage.own or not (self.policy.tau(stage.name) or self.policy.reuses(stage.name))

    @torch.no_grad()
    def end(self, output: Any) -> Any:
        """The transformer's output: its own, or the forecast for the pictures that skipped the step.

        Args:
            output: of the transformer; None if the pass failed.
        """
        step, unfinished, self.step, self._stage_steps = self.step, self._stage_steps, None, None
        if step is None:
            return output
        if output is None:
            self.forget()
            return None
        if unfinished is not None:  # the model did not call a stage's last block
            step.current.forget()
        step.current.memory.let_go()
        current, (structure, detail) = step.current, (step.ran(stage.name) for stage in self.stages)
        full, skipped = structure & detail, {*range(step.pictures)} - {*step.present}
        # A schedule may be lost halfway through a step that some pictures skip.
        if self.policy.skips and (self.config.plan or skipped or step.run.schedule is not None):
            # With the detail reused as it was, the velocity is worse than the line through full ones (1 to 2 dB on the
            # bundled model); with the detail forecast it is better (0.5 dB). With the structure reused it never is.
            output = self.outputs.of(step, output, skipped, structure if self.config.forecast else full)
        step.watch.stop()
        for name, blocks in step.passed.items():
            step.count(name, None, blocks)
        total = sum(len(stage.blocks) * step.inputs.parts.get(stage.name, 1) for stage in (*self.stages, *self.own))
        exact = sum(len(stage.blocks) * step.inputs.parts[stage.name] for stage in self.own if stage.name in step.exact)
        for row in range(step.pictures):
            current.since_full[row] = 0 if row in full else current.since_full[row] + 1
            self._trace.add(FinishedStep(step, row, step.blocks_run[row], total, exact if row in step.present else 0))
        return output

    def forget(self) -> None:
        """Drop everything that is kept."""
        self.step = self._stage_steps = None
        self.tracker.forget()

    # A stage's first block has run, and its last.

    @property
    def pictures(self) -> int:
        """In the batch."""
        return 1 if self.step is None else self.step.pictures

    def rows(self, stage: Stage, *, first: bool) -> Rows | None:
        """The pictures of the batch that a stage's first block, or the next one after it, runs for; None for all."""
        if self.step is None or stage.name in self.step.inputs.constants:  # a result that is kept is kept for all
            return None
        rows = self.step.present if first else self.step.running
        return None if len(rows) == self.step.pictures else rows

    def before_first(self, stage: Stage) -> None:
        """A stage's first block is about to run."""
        if self.step is not None:
            self._method.fetch(self.step, stage)

    def skips(self, stage: Stage, *, first: bool = False) -> bool:
        """Whether the stage's first block, or the blocks after it, are skipped in this step."""
        if self.step is None:
            return False
        if self.step.skipped or stage.name in self.step.exact:
            return True
        return not (first or stage.own or self.step.ran(stage.name))

    def instead(self, stage: Stage, streams: Streams, *, first: bool) -> Streams:
        """What a block that is skipped returns: what it was given, or the kept result of all blocks of its stage."""
        if self.step is None or not first or stage.name not in self.step.exact:
            return streams
        return (self.step.current.memory.results.of(stage.name),)

    def after_first(self, stage: Stage, probe: Probe) -> Streams:
        """The streams to continue with: those of the pictures that need the other blocks, or, if none does, all as
        the last block would have left them."""
        if self.step is None:
            return probe.after
        named = {"structure": self._method.structure_stage, "detail": self._method.detail_stage}
        self._stage_steps = named.get(stage.name, self._method.own_stage)(self.step, stage, probe)
        streams = self._advance(None)
        if self._stage_steps is not None and self.rows(stage, first=False) is None:
            self.step.through.add(stage.name)
        return streams

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
