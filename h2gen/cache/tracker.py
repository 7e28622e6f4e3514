"""Which trajectory, pass and step a forward pass belongs to, and its timestep."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks.hooks import BaseState, StateManager

from h2gen.cache.config import CacheConfig
from h2gen.cache.inputs import Inputs, as_timestep
from h2gen.cache.memory import Memory
from h2gen.cache.schedule import Schedule
from h2gen.cache.trajectory import Pass, Run

if TYPE_CHECKING:
    from h2gen.cache.step import Step

_ROUNDED = 2**-7
"""The relative error of a timestep that was rounded to bfloat16 and then divided by 1000 in it."""


class ContextName(StateManager):  # type: ignore[misc]
    """Receives the name that a pipeline gives to its next forward pass, if it gives one (``cache_context``)."""

    def __init__(self) -> None:
        super().__init__(BaseState)
        self.name: str | None = None

    def set_context(self, context: Any) -> None:
        self.name = getattr(context, "name", context)


class Tracker:
    """Follows the trajectories of one transformer.

    Args:
        config: of the cache.
        schedule: asks the pipeline for the schedule of its current call; None without a pipeline.
        new_memory: makes what a pass keeps, for a number of pictures.
        when_over: a bound method, called once the current trajectory is over. Its object is not kept alive: it owns
            the tracker, and a cycle would keep a removed cache, and the model, until the next garbage collection.
        warn: warns the user, once per message.
    """

    def __init__(
        self,
        config: CacheConfig,
        schedule: Callable[[], Schedule | None] | None,
        new_memory: Callable[[int], Memory],
        when_over: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        self.context = ContextName()
        self._config, self._schedule, self._new_memory = config, schedule, new_memory
        self._when_over, self._warn = weakref.WeakMethod(when_over), warn
        self._run: Run | None = None
        self._runs = 0

    def follow(self, inputs: Inputs) -> tuple[Run, Pass, float | torch.Tensor]:
        """The trajectory and pass that a forward pass continues or begins, and its timestep, 0 to 1000.

        The timestep is a tensor if only the device knows it and no policy needs it.
        """
        each = None if self._run is None else self._run.pass_of(inputs.identity, self.context.name)
        if self._config.needs_time and not self._is_scheduled(each):
            inputs.read_timestep()  # now, while nothing of this pass is queued, rather than halfway through it
        if each is None or _went_back(each, inputs.timestep):
            each = self._new_run(inputs)
        each.fit(inputs.signature, inputs.pictures)
        assert self._run is not None
        return self._run, each, self._timestep(self._run, each, inputs)

    def begun_again(self, step: Step) -> bool:
        """Whether a step turns out to begin a trajectory, now that the device has finished what was queued.

        On an accelerator the timestep is known only after the first synchronisation. Without a schedule, a
        timestep that went up means that a loop has begun again on the same input tensors. The step becomes the first of
        a new trajectory, where nothing is kept yet.
        """
        inputs = step.inputs
        if isinstance(inputs.timestep, float):
            return False
        timestep = inputs.timestep = as_timestep(inputs.timestep)
        if step.run.schedule is not None:
            return False
        step.timestep = timestep
        if not _went_back(step.current, timestep):
            return False
        each = self._new_run(inputs)
        each.fit(inputs.signature, inputs.pictures)
        assert self._run is not None
        step.run, step.current, step.index = self._run, each, 0
        return True

    def forget(self) -> None:
        """Drop the current trajectory and everything that it keeps."""
        self._run = None

    def _over(self, run: Run) -> None:
        when_over = self._when_over()
        if run is self._run and when_over is not None:
            when_over()

    def _new_run(self, inputs: Inputs) -> Pass:
        schedule = None if self._schedule is None else self._schedule()
        self._run = Run(self._runs, schedule, self._over, self._new_memory)
        self._runs += 1
        each = self._run.pass_of(inputs.identity, self.context.name)
        assert each is not None
        return each

    def _is_scheduled(self, each: Pass | None) -> bool:
        """Whether the schedule gives the timestep of the coming step; it is not trusted before its first step."""
        known = None if self._run is None else self._run.schedule
        return each is not None and known is not None and 0 < each.step < len(known)

    def _timestep(self, run: Run, each: Pass, inputs: Inputs) -> float | torch.Tensor:
        """The timestep, 0 to 1000: the schedule's own if it is known, since the model's is rounded to its dtype."""
        if run.schedule is None:
            return inputs.timestep
        known = run.schedule.timesteps
        if each.step == 0:  # look at each run's first step, so that the schedule of another call is not trusted
            inputs.read_timestep()
        expected = known[each.step] if each.step < len(known) else math.nan
        told = inputs.timestep if isinstance(inputs.timestep, float) else expected
        if not math.isclose(told, expected, rel_tol=_ROUNDED):
            run.schedule = None
            for name in ("final_steps", "tolerance"):
                if getattr(self._config, name):
                    self._warn(
                        f"H2-Cache: {name} has no effect here: these steps are not those of the pipeline that the "
                        "cache was applied to."
                    )
            return inputs.timestep
        return expected


def _went_back(each: Pass, timestep: float | torch.Tensor) -> bool:
    """Whether the timestep is above the last one: a loop that uses the same input tensors has begun again."""
    return isinstance(timestep, float) and each.timestep is not None and timestep > each.timestep
