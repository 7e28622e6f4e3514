"""Reports the prompts of a batch that the model does not read to their end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from h2gen.batches.jobs import Job
from h2gen.generation.unread import Unread

_FIRST = 3
"""Prompts that get a line each; the others are only counted."""


class Truncated:
    """Reports the first truncated prompts as they are made, and at the end how many there were.

    Args:
        report: is called with each line.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._sources: set[tuple[str, str]] = set()

    def add(self, job: Job, unread: Iterable[Unread]) -> None:
        """Note what was not read of a job's prompts; seeds of one prompt count once."""
        for each in unread:
            key = (job.source, each.setting)
            if key not in self._sources:
                self._sources.add(key)
                if len(self._sources) <= _FIRST:
                    self._report(f"{job.source}: {each}")

    def close(self) -> None:
        """Report the number, if there were more than those reported."""
        if len(self._sources) > _FIRST:
            count = len(self._sources)
            self._report(f"{count} prompts were truncated; 'left_out' in --json and the metadata has the missing part.")
