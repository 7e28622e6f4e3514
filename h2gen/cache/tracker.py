"""Which trajectory, pass and step a forward pass belongs to, and its timestep."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from h2gen.cache.config import CacheConfig
from h2gen.cache.inputs import Inputs, as_timestep
from h2gen.cache.memory import Memory
from h2gen.cache.passes import Pass
from h2gen.cache.schedule import Course
from h2gen.cache.trajectory import Run

if TYPE_CHECKING:
    from h2gen.cache.step import Step

_MOST_REPEATS = 3
"""How often a step runs one text at most. If a loop repeats a timestep more often, it has begun again: otherwise what
is kept would grow with every pass."""


_NEW_TENSORS = (
    "H2-Cache: nothing is reused, because the condition (text embeddings, img_ids, txt_ids) is a new tensor at each "
    "step; make it once, before the loop."
)


class ContextName(threading.local):
    """The name that a pipeline gives to this thread's next forward pass, if it gives one (``cache_context``)."""

    name: str | None = None


class Tracker:
    """Follows the trajectories of one transformer.

    Args:
        config: of the cache.
        find_course: finds the course of the call that runs the transformer, given a function that reads the timestep.
        new_memory: makes what a pass keeps, for a number of pictures.
        when_over: a bound method, called once the current trajectory is over. Its object is not kept alive: it owns
            the tracker, and a cycle would keep a removed cache, and the model, until the next garbage collection.
        warn: warns the user, once per message.
        context: the name of this thread's next forward pass.
        numbers: of trajectories, from 0.
    """

    def __init__(
        self,
        config: CacheConfig,
        find_course: Callable[[Callable[[], float]], Course | None],
        new_memory: Callable[[int], Memory],
        when_over: Callable[[], None],
        warn: Callable[[str], None],
        context: ContextName,
        numbers: Iterator[int],
    ) -> None:
        self._context, self._numbers = context, numbers
        self._config, self._find_course, self._new_memory = config, find_course, new_memory
        self._when_over, self._warn = weakref.WeakMethod(when_over), warn
        self._run: Run | None = None
        self._single: float | torch.Tensor | None = None
        """The timestep of the last pass, if it was in the first step of its run."""

    def knows(self, inputs: Inputs) -> bool:
        """Whether a forward pass belongs to the current trajectory."""
        run = self._run  # another thread may end it meanwhile
        return run is not None and run.passes_with(inputs.identity, self._context.name) is not None

    def follow(self, inputs: Inputs) -> tuple[Run, Pass, float | torch.Tensor]:
        """The trajectory and pass that a forward pass continues or begins, and its timestep, 0 to 1000.

        The timestep is a tensor if only the device knows it and no policy needs it. With a course it is the schedule's
        own, since the model's is rounded to its dtype.
        """
        run = self._run
        found = None if run is None else run.passes_with(inputs.identity, self._context.name)
        step = None if run is None or found is None else self._step(run, found, inputs)
        if run is None or found is None or step is None:
            run, found, step = self._new_run(inputs), [], 0
        if step > run.step:
            run.before, run.timestep = run.timestep, inputs.timestep
        if not found and run.lost_text:
            self._say_that_nothing_is_reused()
        self._single = None if step else inputs.timestep
        each = run.enter(inputs.identity, self._context.name, found, step)
        each.fit(inputs.signature, inputs.pictures, inputs.passes)
        run.ranks = inputs.ranks
        return run, each, inputs.timestep if run.schedule is None else run.schedule.timesteps[step]

    def _step(self, run: Run, found: Sequence[Pass], inputs: Inputs) -> int | None:
        """The step of a run that a forward pass belongs to, the current or the next one; None if a run begins."""
        repeats = sum(each.step == run.step for each in found)
        same_latents, most = run.same_latents(inputs.identity), repeats == _MOST_REPEATS
        if run.course is not None:
            step = run.course.next_step(run.step, inputs.read_timestep)
            if step == run.step and (most or (repeats and not same_latents)):
                inputs.read_timestep()  # either a text runs again in this step, or the scheduler is another call's
            if step is not None and 0 <= step - run.step <= 1 and run.course.is_at(step, inputs.timestep):
                return None if most and step == run.step else step
            if inputs.read_timestep() > _known(run.timestep) or (step is None and not found):
                return None
            self._lose_course(run)
        lost = not found and run.lost_text
        if self._config.needs_time or lost or (repeats and (run.repeats or same_latents)):
            inputs.read_timestep()  # now, while nothing of this pass is queued, rather than halfway through it
        if not isinstance(inputs.timestep, float):
            return run.step + (repeats > 0)
        last = _known(run.timestep)
        begins = inputs.timestep > last or (inputs.timestep == last and most)
        return None if begins else run.step + (inputs.timestep < last)

    def begun_again(self, step: Step) -> bool:
        """Whether a step turns out to be another one, now that the device has finished what was queued.

        On an accelerator the timestep is known only after the first synchronisation. Without a schedule, a timestep
        that went up means that a loop has begun again on the same input tensors, and the same timestep that the step
        before runs once more. The step then belongs to a new trajectory or pass, where nothing is kept yet.
        """
        inputs = step.inputs
        if isinstance(inputs.timestep, float):
            return False
        timestep = inputs.timestep = as_timestep(inputs.timestep)
        if step.run.course is not None:
            if not step.run.course.is_at(step.index, timestep):
                self._lose_course(step.run)
                step.timestep = timestep
            return False
        run, last = step.run, step.run.before
        step.timestep = run.timestep = timestep
        if last is None or timestep < _known(last):
            return False
        found: list[Pass] = []
        if timestep > _known(last):
            run, index = self._new_run(inputs), 0
        else:
            run.repeats, index = True, step.index - 1
            step.current.step = index
            found = run.passes_with(inputs.identity, self._context.name) or []
        each = run.enter(inputs.identity, self._context.name, found, index)
        each.fit(inputs.signature, inputs.pictures, inputs.passes)
        step.run, step.current, step.index = run, each, index
        return True

    def forget(self) -> None:
        """Drop the current trajectory and everything that it keeps."""
        if self._run is not None:
            self._run.forget()
        self._run = None

    def _over(self, run: Run) -> None:
        when_over = self._when_over()
        if run is self._run and when_over is not None:
            when_over()

    def _new_run(self, inputs: Inputs) -> Run:
        self.forget()
        if self._single is not None and inputs.read_timestep() < _known(self._single):
            self._say_that_nothing_is_reused()
        course = self._find_course(inputs.read_timestep)
        if course is None:
            self._say_what_has_no_effect("here")
            if self._config.needs_time:
                inputs.read_timestep()  # now, while nothing of this pass is queued, rather than halfway through it
        self._run = run = Run(next(self._numbers), course, inputs.timestep, self._over, self._new_memory)
        return run

    def _lose_course(self, run: Run) -> None:
        run.course = None
        self._say_what_has_no_effect(f"after step {run.step + 1}")

    def _say_that_nothing_is_reused(self) -> None:
        if self._config.enabled:
            self._warn(_NEW_TENSORS)

    def _say_what_has_no_effect(self, where: str) -> None:
        for name in () if self._config.plan_alone else ("final_steps", "tolerance"):
            if getattr(self._config, name):
                also = ", so the plan skips nothing" if name == "tolerance" and self._config.plan else ""
                self._warn(
                    f"H2-Cache: {name} has no effect {where}{also}: the remaining steps are unknown. They are read "
                    "from the scheduler of the diffusers pipeline that runs the transformer, or of a loop that calls "
                    "its step(); or give schedule=, up to the time after the last step."
                )


def _known(timestep: float | torch.Tensor) -> float:
    """A timestep, 0 to 1000, whose copy the device has finished."""
    return timestep if isinstance(timestep, float) else as_timestep(timestep)
