"""The schedule of the call that runs the transformer, and the scheduler that takes its steps."""

from __future__ import annotations

import inspect
import math
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import FrameType
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

ROUNDED = 2**-7
"""The relative error of a timestep that was rounded to bfloat16 and then divided by 1000 in it."""


@dataclass(frozen=True)
class Schedule:
    """What the solver does, step by step.

    Args:
        timesteps: of the steps, 1000 to 0, exact (the model is given them rounded to its dtype).
        intervals: how far each step moves the picture along its velocity, in sigma, negative; None if the solver
            does anything other than add that (it is not plain Euler).
    """

    timesteps: tuple[float, ...]
    intervals: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(timestep / 1000 for timestep in self.timesteps)

    @cached_property
    def moves(self) -> tuple[float, ...]:
        """How far each step moves the picture along its velocity, in sigma, negative.

        For solvers other than Euler, half of the way from the step before to the step after. This is the trapezoidal
        rule, which Heun's solver follows with its two passes at one sigma, and UniPC nearly.
        """
        if self.intervals is not None:
            return self.intervals
        before, after = (self.sigmas[0], *self.sigmas[:-1]), (*self.sigmas[1:], 0.0)
        return tuple((end - start) / 2 for start, end in zip(before, after, strict=True))


class Course:
    """A call's progress through its schedule, read from the scheduler, which counts its steps on the host.

    This shows, without waiting for the device, which step a forward pass belongs to, and whether the scheduler takes
    the steps of this call at all: the scheduler of another call does not advance.

    Args:
        scheduler: is not kept alive.
        first: the index of the call's first step in the scheduler's timesteps.
        timesteps: of the scheduler, 1000 to 0.
    """

    _whole = 0.0
    """How far a timestep that the model gets may lie below the schedule's: some schedulers round to whole numbers."""

    def __init__(self, scheduler: Any, first: int, timesteps: Sequence[float]) -> None:
        self._scheduler, self._first = weakref.ref(scheduler), first
        self._whole = 0.0 if scheduler.timesteps.is_floating_point() else 1.0
        intervals = None
        if _is_euler(scheduler):
            intervals = tuple(after - before for before, after in pairwise(scheduler.sigmas.tolist()[first:]))
        self.schedule = Schedule(tuple(timesteps[first:]), intervals)

    @property
    def step(self) -> int | None:
        """The step of the schedule that comes next, from 0; None if there is none, or the scheduler is gone."""
        scheduler = self._scheduler()
        if scheduler is None:
            return None
        step = 0 if scheduler.step_index is None else scheduler.step_index - self._first
        return step if 0 <= step < len(self.schedule) else None

    def next_step(self, last: int, read_timestep: Callable[[], float]) -> int | None:
        """The step that comes next, after a pass of the step ``last``; None if that is not known any more."""
        return self.step

    def is_at(self, step: int, timestep: Any) -> bool:
        """Whether a timestep that the model was given, 0 to 1000, may be that of a step; a tensor may."""
        known = self.schedule.timesteps[step]
        return not isinstance(timestep, float) or math.isclose(timestep, known, rel_tol=ROUNDED, abs_tol=self._whole)


def course_finder(target: Any) -> Callable[[Callable[[], float]], Course | None]:
    """A function that finds the course of the call that is running the transformer at its first step; None if unknown.

    Views of a pipeline share its transformer and may have schedulers of their own, so the pipeline or the loop that
    calls is asked first, and then the target.

    Args:
        target: what the cache was applied to. It is not kept alive: a hook on a model must not keep its pipeline.
    """
    owner = weakref.ref(target) if hasattr(target, "scheduler") else lambda: None

    def find(read_timestep: Callable[[], float]) -> Course | None:
        for scheduler in [*_of_caller(), *_schedulers(owner())]:
            course = _course(scheduler, read_timestep)
            if course is not None:
                return course
        return None

    return find


def _of_caller() -> list[Any]:
    """The schedulers of the nearest calling function that has any, directly or in a pipeline."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        found = [each for owner in _configured(frame) for each in _schedulers(owner)]
        if found:
            return found
        frame = frame.f_back
    return []


def callers() -> Iterator[ConfigMixin]:
    """The pipelines, schedulers and models among the variables of the calling functions, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield from _configured(frame)
        frame = frame.f_back


def _configured(frame: FrameType) -> list[ConfigMixin]:
    """The pipelines, schedulers and models among a function's variables."""
    values = frame.f_locals
    # By type: isinstance also asks a value for its class, which makes lazy objects of others do their work.
    found = [value for value in list(values.values()) if issubclass(type(value), ConfigMixin)]
    copied = sys.version_info < (3, 13) and frame.f_code.co_flags & inspect.CO_OPTIMIZED
    copied = copied and frame.f_trace is None  # a debugger writes the values back into the function
    if copied and sys.getrefcount(values) == 3:  # the function, this one and the call hold it; nothing else does
        values.clear()  # or it would keep the values alive until the function returns
    return found


def _schedulers(owner: Any) -> Iterator[Any]:
    """The scheduler of a pipeline, or this one itself, if it is diffusers' own, counts its steps and has any."""
    scheduler = getattr(owner, "scheduler", owner)
    counts = isinstance(scheduler, SchedulerMixin) and hasattr(scheduler, "step_index")
    if counts and getattr(scheduler, "num_inference_steps", None):
        yield scheduler


def _course(scheduler: Any, read_timestep: Callable[[], float]) -> Course | None:
    """A scheduler's course from its next step, if the timestep of that step is the model's."""
    timesteps, first = _timesteps(scheduler), scheduler.step_index
    if first is None:
        first = getattr(scheduler, "begin_index", None)
    if first is None:  # a few pipelines let the scheduler search for their first timestep
        given = read_timestep()
        first = min(range(len(timesteps)), key=lambda step: abs(timesteps[step] - given))
    if first >= len(timesteps):  # it has taken all of its steps, in an earlier call
        return None
    course = Course(scheduler, first, timesteps)
    return course if course.is_at(0, read_timestep()) else None


def _timesteps(scheduler: Any) -> list[float]:
    """Of all steps, 1000 to 0: those of a scheduler that rounds them to whole numbers are taken from its sigmas."""
    given = [float(each) for each in scheduler.timesteps.tolist()]
    if scheduler.config.get("use_flow_sigmas") and scheduler.config.get("num_train_timesteps") == 1000:
        return [1000 * sigma for sigma in scheduler.sigmas.tolist()[: len(given)]]
    return given


def _is_euler(scheduler: Any) -> bool:
    """Whether a step adds interval times velocity, and nothing else."""
    return type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and not (
        scheduler.config.get("stochastic_sampling") or scheduler.config.get("invert_sigmas")
    )
