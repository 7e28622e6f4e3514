"""The order in which a batch makes its pictures: idle workers get jobs, failures are retried, and stops are handled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from h2gen.batches.jobs import Job
from h2gen.batches.messages import Broken, Failed, PictureMade, Ready, Stepped, Stopped, Task
from h2gen.batches.observer import BatchObserver, Tally
from h2gen.batches.pool import AnyPool, AnyWorker, Died, W
from h2gen.batches.stop import Level, Stop
from h2gen.generation.relief import Relief, next_relief

TRIES = 2
"""How often a job is tried before it counts as failed. Running out of memory has separate tries, one per relief."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that is waiting or in flight.

    ``tries`` counts attempts to make it alone that did not run out of memory, ``tiled`` says whether to decode it in
    tiles, and ``alone`` that it is not put into a batch any more, because one that it was in failed. ``before`` is the
    offloading that its worker had before it ran out of memory for this job.
    """

    id: str
    job: Job
    tries: int = 0
    tiled: bool = False
    alone: bool = False
    before: str | None = None

    def goes_with(self, other: QueuedJob) -> bool:
        """Whether both can be made in one batch."""
        alike = self.tiled == other.tiled and self.job.settings.goes_with(other.job.settings)
        return alike and not (self.alone or other.alone)


class JobQueue(Generic[W]):
    """Distributes jobs to workers.

    Args:
        jobs: what to make, each with its id; read as they are needed.
        tally: counts to start from.
        task_of: turns a job into what a worker is sent.
        keep: writes a picture and records it, before anything else; an error in it ends the run.
        give_up: records a failure.
        observer: receives all events.
        batch_size: pictures per batch; those of one batch are consecutive and differ only in prompt and seed.
    """

    def __init__(
        self,
        jobs: Iterable[tuple[str, Job]],
        tally: Tally,
        *,
        task_of: Callable[[QueuedJob], Task],
        keep: Callable[[QueuedJob, PictureMade], Path],
        give_up: Callable[[QueuedJob, str], None],
        observer: BatchObserver,
        batch_size: int = 1,
    ) -> None:
        self.tally = tally
        self._jobs: Iterator[tuple[str, Job]] = iter(jobs)
        self._task_of, self._keep, self._give_up, self._observer = task_of, keep, give_up, observer
        self._waiting: deque[QueuedJob] = deque()
        self._reserved: dict[int, QueuedJob] = {}
        """Jobs that ran out of memory, by the number of the worker that is loaded again to make them."""
        self._batch_size = batch_size
        self._in_flight: dict[W, deque[QueuedJob]] = {}
        self._announced = False

    def run(self, pool: AnyPool[W], stop: Stop) -> Tally:
        """Make everything, or as much as possible before ``stop`` ends the run.

        Raises:
            H2GenError: the model cannot be loaded, or a picture cannot be written.
        """
        self._assign(pool, stop)
        while self._in_flight or (stop.level is Level.NEVER and (self._reserved or self._more())):
            if stop.level >= Level.STEP:
                for worker in self._in_flight:
                    worker.interrupt()
            for worker, message in pool.messages(stop):
                if isinstance(message, Stepped):
                    self._observer.stepped(pool.workers.index(worker), message.record)
                elif isinstance(message, Ready):
                    if not self._announced:
                        self._announced = True
                        for warning in message.warnings:
                            self._observer.notice(warning)
                        self._observer.ready(message)
                    self._assign(pool, stop)
                elif isinstance(message, Broken):
                    self._leave_out(worker, pool, stop)
                else:
                    self._finish(worker, message, pool, stop)
        return self.tally

    def _leave_out(self, worker: W, pool: AnyPool[W], stop: Stop) -> None:
        """The pool continues without a worker; others make what was reserved for it."""
        reserved = self._reserved.pop(pool.workers.index(worker), None)
        if reserved is not None:
            self._waiting.appendleft(replace(reserved, before=None))
        self._assign(pool, stop)

    def _finish(
        self, worker: W, message: PictureMade | Failed | Stopped | Died | Any, pool: AnyPool[W], stop: Stop
    ) -> None:
        """Handle the outcome of one job, or of all jobs of a worker."""
        finished = self._take(worker, message)
        relief = None
        if isinstance(message, Failed) and message.sick:
            if message.exhausted:
                relief = _relief(worker, finished)
                self._reload(worker, finished, relief, pool)
            else:
                pool.replace(worker)
        self._assign(pool, stop)  # before the picture is written, so that the device does not wait
        if len(finished) > 1:
            self._split(finished, message)
        elif finished:
            self._resolve(finished[0], message, relief)
        self._assign(pool, stop)

    def _reload(self, worker: W, jobs: list[QueuedJob], relief: Relief | None, pool: AnyPool[W]) -> None:
        """Replace a worker that ran out of memory. The new one offloads more, and begins with the job if it was alone;
        if nothing is left to try for that job, the new one offloads as the worker did before it."""
        only = jobs[0] if len(jobs) == 1 else None
        if relief is None:
            pool.replace(worker, None if only is None else only.before)
            return
        if only is not None and worker.ready is not None:
            before = only.before or worker.ready.offload
            self._reserved[pool.workers.index(worker)] = replace(only, tiled=relief.tiled, before=before)
        pool.replace(worker, relief.offload if relief.stronger else None)

    def _take(self, worker: W, message: Any) -> list[QueuedJob]:
        """The jobs in flight that a message is about: the first one for a picture, all for anything else."""
        jobs = self._in_flight.get(worker, deque())
        taken = [jobs.popleft() for _ in range(1 if isinstance(message, PictureMade) else len(jobs))]
        if not jobs:
            self._in_flight.pop(worker, None)
            worker.busy = False
        return taken

    def _more(self) -> bool:
        """Whether a job is waiting."""
        if not self._waiting:
            following = next(self._jobs, None)
            if following is not None:
                self._waiting.append(QueuedJob(*following))
        return bool(self._waiting)

    def _assign(self, pool: AnyPool[W], stop: Stop) -> None:
        for worker in pool.idle():
            if stop.level is not Level.NEVER:
                return
            number = pool.workers.index(worker)
            if number in self._reserved:
                together = [self._reserved.pop(number)]
            elif self._more():
                together = [self._waiting.popleft()]
                while len(together) < self._batch_size and self._more() and together[0].goes_with(self._waiting[0]):
                    together.append(self._waiting.popleft())
            else:
                continue
            self._in_flight[worker] = deque(together)
            self._observer.began(number, [queued.job for queued in together])
            worker.give([self._task_of(queued) for queued in together])

    def _split(self, together: list[QueuedJob], message: Failed | Stopped | Died | Any) -> None:
        """Make the pictures of a failed batch one by one: any of them may be the cause."""
        if isinstance(message, (Failed, Died)):
            self._waiting.extendleft(replace(queued, alone=True) for queued in reversed(together))
            self._observer.split([queued.job for queued in together], _error_of(message))

    def _resolve(
        self, queued: QueuedJob, message: PictureMade | Failed | Stopped | Died | Any, relief: Relief | None
    ) -> None:
        """Keep a picture, or decide whether a failed job is tried again. ``relief`` is what it is tried with after
        running out of memory."""
        if isinstance(message, PictureMade):
            path = self._keep(queued, message)
            self.tally.made += 1
            self.tally.seconds += message.seconds
            if message.summary is not None:
                self.tally.steps = self.tally.steps + message.summary
            self._observer.saved(queued.job, path, message, self.tally)
        elif relief is not None:
            self._observer.relieved(queued.job, str(relief))
        elif isinstance(message, (Failed, Died)):
            error = _error_of(message)
            exhausted = isinstance(message, Failed) and message.exhausted
            tries = queued.tries + (not exhausted)
            again = not exhausted and tries < TRIES and (isinstance(message, Died) or message.again)
            if again:
                self._waiting.appendleft(replace(queued, tries=tries, before=None))
            else:
                self.tally.failed += 1
                self._give_up(queued, error)
            self._observer.failed(queued.job, error, again, self.tally)


def _error_of(message: Failed | Died) -> str:
    return f"the process that made it {message}" if isinstance(message, Died) else message.error


def _relief(worker: AnyWorker, jobs: list[QueuedJob]) -> Relief | None:
    """What to try after a worker ran out of memory. The pictures of a batch are first tried one by one."""
    ready = worker.ready
    if ready is None:
        return None
    return next_relief(ready.device, ready.offload, len(jobs) == 1 and jobs[0].tiled, ready.refused)
