"""Who makes which picture when: jobs go to idle workers, failures are tried again, and a stop is heeded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from h2gen.batches.jobs import Job
from h2gen.batches.pool import Died, Pool, Worker
from h2gen.batches.stop import Level, Stop
from h2gen.batches.worker import Failed, PictureMade, Ready, Stepped, Stopped, Task
from h2gen.cache.trace import StepRecord, Summary
from h2gen.models.choices import STRONGER

TRIES = 2
"""How often a job is tried before it counts as failed."""


@dataclass
class Tally:
    """What a run has done so far. ``seconds`` and ``steps`` add up over the pictures made."""

    jobs: int
    skipped: int = 0
    made: int = 0
    failed: int = 0
    seconds: float = 0.0
    steps: Summary = field(default_factory=Summary)

    @property
    def left(self) -> int:
        return self.jobs - self.skipped - self.made - self.failed


class BatchObserver(Protocol):
    """Whoever wants to know how a run goes on."""

    def ready(self, ready: Ready) -> None:
        """The first worker has loaded the model."""

    def began(self, worker: int, jobs: Sequence[Job]) -> None:
        """A worker has been given pictures to make together, or one."""

    def stepped(self, worker: int, record: StepRecord) -> None: ...

    def made(self, job: Job, path: Path, made: PictureMade, tally: Tally) -> None: ...

    def parted(self, jobs: Sequence[Job], error: str) -> None:
        """A batch failed, and each of it is made alone."""

    def failed(self, job: Job, error: str, again: bool, tally: Tally) -> None:
        """A try failed; ``again`` says whether another one follows."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits, or is in hand.

    ``tries`` is how often it was tried alone, ``tiled`` whether it is to be decoded in tiles, and ``alone`` whether it
    is made in no batch any more: one that it was in has failed.
    """

    id: str
    job: Job
    tries: int = 0
    tiled: bool = False
    alone: bool = False

    def goes_with(self, other: QueuedJob) -> bool:
        """Whether both can be made in one batch."""
        return not (self.alone or other.alone) and self.job.settings.goes_with(other.job.settings)


class JobQueue:
    """The order in which jobs are made.

    Args:
        jobs: what is to be made, each with its id; read as they are needed.
        tally: counts from where the run begins.
        task_of: what a worker is told to make of a job.
        keep: writes a picture and records it, before anything else happens to it; raises what ends the run.
        give_up: records a failure.
        watcher: is told of everything.
        batch_size: a worker is given so many pictures at once at most, which follow one another and differ in prompt
            and seed alone.
    """

    def __init__(
        self,
        jobs: Iterable[tuple[str, Job]],
        tally: Tally,
        *,
        task_of: Callable[[QueuedJob], Task],
        keep: Callable[[QueuedJob, PictureMade], Path],
        give_up: Callable[[QueuedJob, str], None],
        watcher: BatchObserver,
        batch_size: int = 1,
    ) -> None:
        self.tally = tally
        self._jobs: Iterator[tuple[str, Job]] = iter(jobs)
        self._task_of, self._keep, self._give_up, self._watcher = task_of, keep, give_up, watcher
        self._again: deque[QueuedJob] = deque()
        self._batch_size = batch_size
        self._hand: dict[Worker, deque[QueuedJob]] = {}
        self._announced = False

    def run(self, pool: Pool, stop: Stop) -> Tally:
        """Make everything that is to be made, or what can be before ``stop`` ends it.

        Raises:
            H2GenError: the model cannot be loaded, or a picture cannot be written.
        """
        self._assign(pool, stop)
        while self._hand or (stop.level is Level.NEVER and self._more()):
            if stop.level >= Level.STEP:
                for worker in self._hand:
                    worker.interrupt()
            for worker, message in pool.messages(stop):
                if isinstance(message, Stepped):
                    self._watcher.stepped(pool.workers.index(worker), message.record)
                    continue
                if isinstance(message, Ready):
                    if not self._announced:
                        self._announced = True
                        self._watcher.ready(message)
                    answered = []
                else:
                    answered = self._answered(worker, message)
                    if isinstance(message, Failed) and message.sick:
                        pool.replace(worker, _relief(worker) if message.exhausted else None)
                self._assign(pool, stop)  # before the picture is written: the device waits for nobody
                if len(answered) > 1:
                    self._part(answered, message)
                elif answered:
                    self._settle(answered[0], message)
                self._assign(pool, stop)
        return self.tally

    def _answered(self, worker: Worker, message: Any) -> list[QueuedJob]:
        """The jobs in a worker's hand that a message is about: the first for a picture, all for anything else."""
        hand = self._hand.get(worker, deque())
        answered = [hand.popleft() for _ in range(1 if isinstance(message, PictureMade) else len(hand))]
        if not hand:
            self._hand.pop(worker, None)
            worker.busy = False
        return answered

    def _more(self) -> bool:
        """Whether a job waits."""
        if not self._again:
            following = next(self._jobs, None)
            if following is not None:
                self._again.append(QueuedJob(*following))
        return bool(self._again)

    def _assign(self, pool: Pool, stop: Stop) -> None:
        for worker in pool.idle():
            if stop.level is not Level.NEVER or not self._more():
                return
            together = [self._again.popleft()]
            while len(together) < self._batch_size and self._more() and together[0].goes_with(self._again[0]):
                together.append(self._again.popleft())
            self._hand[worker] = deque(together)
            self._watcher.began(pool.workers.index(worker), [pending.job for pending in together])
            worker.give([self._task_of(pending) for pending in together])

    def _part(self, together: list[QueuedJob], message: Failed | Stopped | Died | Any) -> None:
        """A batch has failed: nobody knows by whose fault, so each of it is made alone."""
        if isinstance(message, (Failed, Died)):
            self._again.extendleft(replace(pending, alone=True) for pending in reversed(together))
            self._watcher.parted([pending.job for pending in together], _error_of(message))

    def _settle(self, pending: QueuedJob, message: PictureMade | Failed | Stopped | Died | Any) -> None:
        """What becomes of a job whose worker has answered."""
        if isinstance(message, PictureMade):
            path = self._keep(pending, message)
            self.tally.made += 1
            self.tally.seconds += message.seconds
            if message.summary is not None:
                self.tally.steps = self.tally.steps + message.summary
            self._watcher.made(pending.job, path, message, self.tally)
        elif isinstance(message, (Failed, Died)):
            error = _error_of(message)
            tries = pending.tries + 1
            again = tries < TRIES and (isinstance(message, Died) or message.again)
            if again:
                tiled = isinstance(message, Failed) and message.exhausted
                self._again.appendleft(replace(pending, tries=tries, tiled=tiled))
            else:
                self.tally.failed += 1
                self._give_up(pending, error)
            self._watcher.failed(pending.job, error, again, self.tally)


def _error_of(message: Failed | Died) -> str:
    return f"the process that made it {message}" if isinstance(message, Died) else message.error


def _relief(worker: Worker) -> str | None:
    """How a worker that ran out of memory should offload instead; None where nothing more can be done."""
    ready = worker.ready
    return None if ready is None or ready.device == "cpu" else STRONGER.get(ready.offload)
