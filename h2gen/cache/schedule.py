"""The part of a pipeline call's schedule that the cache needs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any


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


def schedule_of(pipe: Any) -> Callable[[], Schedule | None]:
    """A function that asks a pipeline for the schedule of its current call; it returns None before the first."""
    reference = weakref.ref(pipe)  # a hook on a model must not keep the pipeline, and so the model, alive

    def schedule() -> Schedule | None:
        pipe = reference()
        count = getattr(pipe, "_num_timesteps", None)
        if pipe is None or not count:
            return None
        scheduler = pipe.scheduler
        timesteps = scheduler.timesteps.double().tolist()[-count:]  # image-to-image leaves out the first ones
        intervals = None
        if _is_euler(scheduler):
            sigmas = scheduler.sigmas.double().tolist()[-count - 1 :]
            intervals = tuple(after - before for before, after in pairwise(sigmas))
        return Schedule(tuple(timesteps), intervals)

    return schedule


def _is_euler(scheduler: Any) -> bool:
    """Whether a step adds interval times velocity, and nothing else."""
    return type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and not (
        scheduler.config.get("stochastic_sampling") or scheduler.config.get("invert_sigmas")
    )
