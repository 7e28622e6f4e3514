"""The schedule that a caller gives for a loop without a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from h2gen.cache.schedule import Course, Schedule
from h2gen.errors import CacheError


class GivenCourse(Course):
    """Where a call is in a given schedule, which the times show that the model is called with."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def next_step(self, last: int, read_timestep: Callable[[], float]) -> int | None:
        near = [step for step in (last, last + 1) if step < len(self.schedule)]
        timestep = read_timestep()
        step = min(near, key=lambda each: abs(self.schedule.timesteps[each] - timestep))
        return step if self.is_at(step, timestep) else None


def given_schedule(times: Iterable[float], sigma: Callable[[Any], Any]) -> Schedule:
    """The schedule of a loop.

    Args:
        times: from the first one to that after the last step: one more than there are steps.
        sigma: of a time.

    Raises:
        CacheError: there are fewer than two times, or one is not closer to the picture than the last.
    """
    sigmas = [float(sigma(float(time))) for time in times]
    if len(sigmas) < 2:
        raise CacheError(f"The schedule has {len(sigmas)} times; give all of them, also the one after the last step.")
    if any(after >= before for before, after in pairwise(sigmas)):
        raise CacheError("Each time of the schedule must be closer to the picture than the last; see times of Stages.")
    return Schedule(
        tuple(1000 * each for each in sigmas[:-1]), tuple(after - before for before, after in pairwise(sigmas))
    )


def given_finder(schedule: Schedule) -> Callable[[Callable[[], float]], Course | None]:
    """What ``course_finder`` returns, for a schedule that was given."""

    def find(read_timestep: Callable[[], float]) -> Course:
        course, timestep = GivenCourse(schedule), read_timestep()
        if not course.is_at(0, timestep):
            raise CacheError(
                f"The schedule begins at {schedule.sigmas[0]:.4g}, but the model was called at {timestep / 1000:.4g} "
                "(1 is noise, 0 the picture); give the schedule of the loop that calls it."
            )
        return course

    return find
