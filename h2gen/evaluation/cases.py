"""Prompts with their seeds as a comparison takes them: the same settings for all."""

from __future__ import annotations

from dataclasses import replace

from h2gen.batches.jobs import Jobs
from h2gen.errors import SettingError
from h2gen.evaluation.results import Case
from h2gen.settings.values import Settings


def cases_of(jobs: Jobs, most: int | None = None) -> tuple[list[Case], Settings]:
    """The cases of some jobs, each once, and the settings that they share.

    Args:
        jobs: of prompt files and options.
        most: so many cases at most; None takes all.

    Raises:
        SettingError: an entry of a prompt file has settings of its own.
    """
    cases: dict[Case, None] = {}
    shared: Settings | None = None
    for job in jobs:
        if most is not None and len(cases) >= most:
            break
        settings = replace(job.settings, prompt="-", seed=0)
        if shared is not None and settings != shared:
            raise SettingError(
                f"{job.source} has settings of its own; a comparison needs the same for all pictures: give them as "
                "options."
            )
        shared = settings
        cases[Case(job.settings.prompt, job.settings.seed)] = None
    if shared is None:
        raise SettingError("There is nothing to compare; give a prompt.")
    return list(cases), shared
