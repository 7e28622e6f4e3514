"""What ``h2gen.batch`` returns: counts, and a record per picture and per failure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from h2gen.cache.summary import Summary

if TYPE_CHECKING:
    from h2gen.batches.jobs import Job
    from h2gen.batches.messages import PictureMade
    from h2gen.settings.values import Settings


@dataclass(frozen=True, slots=True)
class BatchPicture:
    """One picture of a batch.

    Args:
        id: 32 hex digits that identify everything that determines the picture.
        index: its position among all pictures of the batch, from 1.
        source: the prompt's file and line, or its position in the list.
        prompt, seed: what it was made from.
        path: the file.
        new: whether this run made it; otherwise it existed before, and the remaining fields are empty.
        seconds: how long it took.
        cache: what the cache did, if it was on.
        nan_with_cache: it was NaN with the cache and was made again without it.
    """

    id: str
    index: int
    source: str
    prompt: str
    seed: int
    path: Path
    new: bool = False
    seconds: float | None = None
    cache: Summary | None = None
    nan_with_cache: bool = False

    @classmethod
    def of(cls, id: str, job: Job, path: Path, made: PictureMade | None = None) -> BatchPicture:
        """The record of a job's picture; ``made`` if this run made it."""
        settings = job.settings
        if made is None:
            return cls(id, job.index, job.source, settings.prompt, settings.seed, path)
        facts = made.seconds, made.summary, made.nan_with_cache
        return cls(id, job.index, job.source, settings.prompt, settings.seed, path, True, *facts)


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """A picture that could not be made; ``error`` says why."""

    id: str
    index: int
    source: str
    settings: Settings
    error: str


@dataclass(frozen=True)
class BatchResult:
    """A finished batch.

    Args:
        jobs: pictures asked for; ``skipped`` + ``made`` + ``failed``.
        skipped: pictures that existed before.
        made: pictures made by this run.
        failed: pictures that could not be made.
        seconds: of the whole run.
        cache: what the cache did, added up over the pictures made.
        pictures: one record per picture, in the order of the prompts.
        failures: one record per picture that could not be made.
        failures_file: lists the failures as a prompt file; None without failures.
    """

    jobs: int
    skipped: int
    made: int
    failed: int
    seconds: float
    cache: Summary
    pictures: tuple[BatchPicture, ...]
    failures: tuple[BatchFailure, ...]
    failures_file: Path | None

    @property
    def paths(self) -> list[Path]:
        """The pictures' files, in the order of the prompts."""
        return [picture.path for picture in self.pictures]
