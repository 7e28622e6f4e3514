"""What a batch reports while it runs: events for an observer, and counts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from h2gen.cache.summary import Summary
from h2gen.cache.trace import StepRecord
from h2gen.errors import PromptWarning
from h2gen.wording import plural

if TYPE_CHECKING:
    from h2gen.batches.jobs import Job
    from h2gen.batches.messages import PictureMade, Ready
    from h2gen.batches.stop import Level
    from h2gen.errors import H2GenError


@dataclass
class Tally:
    """Counts of a run so far. ``skipped`` pictures existed before; ``seconds`` and ``steps`` are sums over the
    pictures made. ``noun`` is what is made: a picture or a video."""

    jobs: int
    skipped: int = 0
    made: int = 0
    failed: int = 0
    seconds: float = 0.0
    steps: Summary = field(default_factory=Summary)
    noun: str = "picture"

    @property
    def left(self) -> int:
        return self.jobs - self.skipped - self.made - self.failed

    @property
    def left_words(self) -> str:
        """How much is left, such as "2 pictures left"."""
        return f"{plural(self.left, self.noun)} left"


class BatchObserver:
    """Override what you want to know about; every method but ``remark`` does nothing by default.

    ``wants_steps`` asks for ``stepped``, which costs a message per step.
    """

    wants_steps: bool = False

    def notice(self, text: str) -> None:
        """A line that the user should see before pictures are made."""

    def remark(self, text: str) -> None:
        """A line about prompts that are not read to their end, or not as they were meant. A warning by default."""
        warnings.warn(text, PromptWarning, stacklevel=2)

    def counted(self, tally: Tally, duplicates: int, workers: int) -> None:
        """What there is to do. ``duplicates`` are jobs left out because an earlier one makes the same picture."""

    def ready(self, ready: Ready) -> None:
        """The first worker has loaded the model."""

    def began(self, worker: int, jobs: Sequence[Job]) -> None:
        """A worker starts on one picture, or on several as a batch."""

    def stepped(self, worker: int, record: StepRecord) -> None:
        """A step of a worker's current pictures is done."""

    def saved(self, job: Job, path: Path, made: PictureMade, tally: Tally) -> None:
        """A picture is on the disk."""

    def split(self, jobs: Sequence[Job], error: str) -> None:
        """A batch failed; its pictures are made one by one."""

    def relieved(self, job: Job, notice: str) -> None:
        """Memory ran out, and the picture is made in another way; ``notice`` says how."""

    def failed(self, job: Job, error: str, again: bool, tally: Tally) -> None:
        """An attempt failed, other than ``relieved``; ``again`` says whether another follows."""

    def stopping(self, level: Level) -> None:
        """The user wants the run to end. Called in a thread of its own."""

    def ended(self, tally: Tally, seconds: float, failures_file: Path | None, error: H2GenError | None) -> None:
        """The run is over.

        Args:
            tally: what was made.
            seconds: of the whole run.
            failures_file: lists what failed, or None.
            error: is raised next, or None; ``Stopped`` if the user stopped it.
        """
