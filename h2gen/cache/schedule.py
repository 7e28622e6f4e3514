"""The schedule of one call of a pipeline, as far as the cache cares."""

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
        timesteps: of the steps, 1000 to 0, exact where the model's own are rounded to its dtype.
        intervals: how far each step moves the picture along its velocity, in sigma, negative; None where the solver
            does anything else than add that (it is not plain Euler).
    """

    timesteps: tuple[float, ...]
    intervals: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(timestep / 1000 for timestep in self.timesteps)


def schedule_of(pipe: Any) -> Callable[[], Schedule | None]:
    """Ask a pipeline for the schedule of the call that it is in; None before its first."""

    reference = weakref.ref(pipe)  # what hangs on a model must not keep the pipeline, and so the model, alive

    def schedule() -> Schedule | None:
        pipe = reference()
        count = getattr(pipe, "_num_timesteps", None)
        if pipe is None or not count:
            return None
        scheduler = pipe.scheduler
        timesteps = scheduler.timesteps.double().tolist()[-count:]  # image-to-image leaves out the first of them
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
