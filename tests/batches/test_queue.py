"""The queue of a batch on a simulated GPU: relief after running out of memory, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from h2gen.batches.jobs import Job
from h2gen.batches.messages import Broken, Failed, Model, PictureMade, Ready, Stopped, Task
from h2gen.batches.observer import BatchObserver, Tally
from h2gen.batches.queue import JobQueue, QueuedJob
from h2gen.batches.stop import Level
from h2gen.batches.worker import make_together
from h2gen.errors import ModelError, OutOfMemory
from h2gen.models.choices import WAYS
from h2gen.models.load_options import LoadOptions
from h2gen.settings.values import Settings

GOING = SimpleNamespace(level=Level.NEVER)
FULL = Failed("Out of memory on cuda:0.", again=True, exhausted=True, sick=True)
NAN = Failed("NaN.", again=True)


class Worker:
    def __init__(self, offload: str) -> None:
        self.offload = offload
        self.ready: Ready | None = None
        self.busy = False
        self.tasks: Sequence[QueuedJob] = ()

    def give(self, tasks: Sequence[QueuedJob]) -> None:
        self.busy, self.tasks = True, tasks


class Pool:
    """Workers, which answer with ``answer(offloading, number of tasks, first task)``."""

    def __init__(self, answer: Any, workers: int = 1) -> None:
        self.workers = [Worker("none") for _ in range(workers)]
        self.attempts: list[tuple[str, int, bool]] = []
        self._answer = answer

    def idle(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.ready is not None and not worker.busy]

    def replace(self, worker: Worker, offload: str | None = None) -> None:
        self.workers[self.workers.index(worker)] = Worker(offload or worker.offload)

    def messages(self, _stop: Any) -> Iterator[tuple[Worker, Any]]:
        for worker in list(self.workers):
            if worker.busy:
                yield from self._work(worker)
            elif worker.ready is None:  # it has loaded the model
                worker.ready = Ready("cuda:0", "bfloat16", worker.offload)
                yield worker, worker.ready

    def _work(self, worker: Worker) -> Iterator[tuple[Worker, Any]]:
        first, offload = worker.tasks[0], worker.offload
        self.attempts.append((offload, len(worker.tasks), first.tiled))
        failure = self._answer(offload, len(worker.tasks), first)
        if failure is not None:
            yield worker, failure
        else:
            for task in worker.tasks:
                yield worker, PictureMade(b"", None, True, {}, task.job.settings, 1.0, None, False)


class Log(BatchObserver):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def saved(self, job: Job, path: Path, made: PictureMade, tally: Tally) -> None:
        self.events.append(("saved", job.index))

    def split(self, jobs: Sequence[Job], error: str) -> None:
        self.events.append(("split", len(jobs)))

    def relieved(self, job: Job, notice: str) -> None:
        self.events.append(("relieved", job.index, notice))

    def failed(self, job: Job, error: str, again: bool, tally: Tally) -> None:
        self.events.append(("failed", job.index, again))


def run(
    answer: Any, count: int = 1, batch_size: int = 1, workers: int = 1, kind: type[Pool] = Pool
) -> tuple[Pool, list[Any], list[str]]:
    jobs = [
        (str(n), Job(n, Settings("a cat", n, 64, 64, 2), "{index}", None, None, f"p.txt:{n}"))
        for n in range(1, count + 1)
    ]
    pool, log, given_up = kind(answer, workers), Log(), []
    queue = JobQueue(
        jobs,
        Tally(count),
        task_of=lambda queued: queued,  # type: ignore[arg-type, return-value]
        keep=lambda queued, _made: Path(queued.id),
        give_up=lambda queued, _error: given_up.append(queued.id),
        observer=log,
        batch_size=batch_size,
    )
    queue.run(pool, GOING)  # type: ignore[arg-type]
    return pool, log.events, given_up


def relieved(index: int, *modes: str) -> list[Any]:
    notice = "Out of memory on cuda:0; trying again with --offload {} and tiled decoding."
    return [("relieved", index, notice.format(mode)) for mode in modes]


def test_a_worker_that_runs_out_of_memory_is_replaced_by_one_that_offloads_more_until_it_suffices() -> None:
    pool, events, given_up = run(lambda offload, _count, _job: None if offload == "group" else FULL, count=2)
    # The second picture has enough offloading, and no need for tiled decoding.
    assert pool.attempts == [
        *(("none", 1, False), ("text", 1, True), ("model", 1, True), ("group", 1, True), ("group", 1, False))
    ]
    assert events == [*relieved(1, "text", "model", "group"), ("saved", 1), ("saved", 2)]
    assert given_up == []


def test_with_all_relief_in_vain_a_picture_is_given_up() -> None:
    pool, events, given_up = run(lambda *_: FULL)
    assert pool.attempts == [("none", 1, False), *((way, 1, True) for way in WAYS[1:])]
    assert events == [*relieved(1, *WAYS[1:]), ("failed", 1, False)]
    assert given_up == ["1"]


def test_a_picture_that_is_given_up_leaves_the_later_ones_the_offloading_from_before_it() -> None:
    pool, _, given_up = run(lambda _offload, _count, job: FULL if job.id == "2" else None, count=3)
    assert [offload for offload, *_ in pool.attempts] == ["none", *WAYS, "none"]
    assert given_up == ["2"]


def test_a_picture_that_memory_does_not_suffice_for_waits_for_the_worker_that_is_loaded_again_for_it() -> None:
    pool, _, given_up = run(lambda _offload, _count, job: FULL if job.id == "1" else None, count=20, workers=2)
    assert given_up == ["1"]
    assert [offload for offload, _, tiled in pool.attempts if tiled] == [*WAYS[1:]]
    assert [worker.offload for worker in pool.workers] == ["none", "none"]
    assert {offload for offload, _, tiled in pool.attempts if not tiled} == {"none"}


def test_running_out_of_memory_is_no_try_and_a_picture_tried_again_stays_tiled() -> None:
    answers = iter([FULL, NAN, None])
    pool, events, given_up = run(lambda *_: next(answers))
    assert pool.attempts == [("none", 1, False), ("text", 1, True), ("text", 1, True)]
    assert events == [*relieved(1, "text"), ("failed", 1, True), ("saved", 1)]
    assert given_up == []


def test_a_tiled_picture_is_not_made_together_with_others() -> None:
    one, other = (QueuedJob(str(n), Job(n, Settings("a cat", n, 64, 64, 2), "", None, None, "")) for n in (1, 2))
    assert one.goes_with(other) and not replace(one, tiled=True).goes_with(other)


@pytest.mark.parametrize(
    ("error", "last"),
    [(OutOfMemory("Full."), Failed("Full.", again=True, exhausted=True, sick=True)), (KeyboardInterrupt(), Stopped())],
)
def test_a_worker_sends_what_was_finished_before_a_failure(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, last: Any
) -> None:
    class Session:
        def run_together(self, settings: Sequence[Settings], *, on_result: Any, **_: Any) -> None:
            on_result("first")
            raise error

    monkeypatch.setattr("h2gen.batches.worker._made", lambda _model, task, result: (task.job, result))
    tasks = [Task(Settings("a cat", n, 64, 64, 2), "png", None, str(n), "", None, False, True, False) for n in (1, 2)]
    model: Any = Model(None, LoadOptions(), "")  # type: ignore[arg-type]
    assert make_together(Session(), model, tasks, None) == [("1", "first"), last]  # type: ignore[arg-type]


def test_what_a_worker_that_is_left_out_was_to_make_is_made_by_another() -> None:
    """A cluster's worker that ran out of memory is started again on a machine that has another model."""

    class Cluster(Pool):
        left_out: Any = None

        def replace(self, worker: Worker, offload: str | None = None) -> None:
            super().replace(worker, offload)
            self.left_out = next(each for each in self.workers if each.ready is None)

        def idle(self) -> list[Worker]:
            return [each for each in super().idle() if each is not self.left_out]

        def messages(self, stop: Any) -> Iterator[tuple[Worker, Any]]:
            for worker, message in super().messages(stop):
                if worker is not self.left_out:
                    yield worker, message
                elif not worker.tasks:
                    worker.tasks = ["told"]  # type: ignore[list-item]
                    yield worker, Broken(ModelError("other contents"))
            self.rounds = getattr(self, "rounds", 0) + 1
            assert self.rounds < 20, "the queue waits for a worker that never comes"

    failures = iter([FULL])
    _, events, given_up = run(lambda *_: next(failures, None), count=3, workers=2, kind=Cluster)
    assert sorted(index for kind, index, *_ in events if kind == "saved") == [1, 2, 3] and not given_up


def test_of_a_batch_each_picture_is_tried_alone_before_it_is_decoded_in_tiles() -> None:
    pool, events, _ = run(lambda _offload, count, _job: FULL if count > 1 else None, count=2, batch_size=2)
    assert pool.attempts == [("none", 2, False), ("text", 1, False), ("text", 1, False)]
    assert events == [("split", 2), ("saved", 1), ("saved", 2)]


def test_other_failures_are_tried_twice() -> None:
    _, events, given_up = run(lambda *_: NAN)
    assert events == [("failed", 1, True), ("failed", 1, False)]
    assert given_up == ["1"]
