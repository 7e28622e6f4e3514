"""A run with worker processes that really are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from h2gen.errors import ModelError, RunError
from h2gen.run.batch import Batch, Wishes
from h2gen.run.jobs import Job, Jobs
from h2gen.run.pool import Pool
from h2gen.run.prompts import Entry, Reading
from h2gen.run.schedule import Tally
from h2gen.run.stop import Level, Stop
from h2gen.run.worker import Made, Model, Ready
from tests.cli.programs import children, wait_for

QUICK = {"steps": 4, "cfg": 1.0, "preset": "paper", "device": "cpu"}


class Watch:
    """Writes down what happens, and does something at each step."""

    def __init__(self, at_step: Callable[[int, Job], None] = lambda _worker, _job: None) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._jobs: dict[int, Job] = {}
        self._at_step = at_step

    def ready(self, ready: Ready) -> None:
        self.log.append(("ready", ready.device, ready.dtype))

    def began(self, worker: int, job: Job) -> None:
        self._jobs[worker] = job

    def stepped(self, worker: int, record: Any) -> None:
        if record.step == 1:
            self._at_step(worker, self._jobs[worker])

    def made(self, job: Job, path: Path, made: Made, tally: Tally) -> None:
        self.log.append(("made", job.index))

    def failed(self, job: Job, error: str, again: bool, tally: Tally) -> None:
        self.log.append(("failed", job.index, error, again))


def batch_of(folder: Path, count: int, **wishes: Any) -> Batch:
    reading = Reading([Entry(f"prompt {n}", f"p.txt:{n}", {}, {}) for n in range(1, count + 1)])
    return Batch(Jobs(reading, QUICK, {}), folder, "png", Wishes(**wishes))


def run(batch: Batch, devices: list[str], watch: Watch) -> Tally:
    with batch.opened() as tally, Stop() as stop:
        batch.run(tally, devices, watch, stop, watched=True)
    return tally


def kill_worker(number: int = 0) -> None:
    """SIGKILL to one of our own worker processes, the oldest first."""
    found = []
    for pid in children(os.getpid()):
        with open(f"/proc/{pid}/cmdline") as file:
            if "spawn_main" in file.read():
                found.append(pid)
    os.kill(sorted(found)[number], signal.SIGKILL)


def test_a_worker_killed_in_the_middle_is_replaced_and_another_does_its_job(tmp_path: Path) -> None:
    killed: list[int] = []

    def once(_worker: int, job: Job) -> None:
        if not killed:
            killed.append(job.index)
            kill_worker()

    watch = Watch(once)
    tally = run(batch_of(tmp_path, 5), ["cpu", "cpu"], watch)
    assert (tally.made, tally.failed, tally.left) == (5, 0, 0)
    failures = [entry for entry in watch.log if entry[0] == "failed"]
    assert len(failures) == 1
    assert failures[0][2:] == ("the process that made it was killed by signal 9", True)
    assert sorted(path.name[:4] for path in tmp_path.glob("*.png")) == [f"{n:04}" for n in range(1, 6)]
    assert not [pid for pid in children(os.getpid()) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_done(tmp_path: Path) -> None:
    def always(_worker: int, job: Job) -> None:
        if job.index == 1:
            kill_worker()

    watch = Watch(always)
    batch = batch_of(tmp_path, 3)
    tally = run(batch, ["cpu"], watch)
    assert (tally.made, tally.failed) == (2, 1)
    assert [entry[3] for entry in watch.log if entry[0] == "failed"] == [True, False]
    assert "killed by signal 9" in batch.failures.read_text()


def test_a_model_that_kills_whoever_loads_it_ends_the_run(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, 1)
    stopping = threading.Event()

    def kill_them_all() -> None:
        while not stopping.wait(0.05):
            with contextlib.suppress(IndexError, OSError):
                kill_worker()

    killer = threading.Thread(target=kill_them_all)
    killer.start()
    try:
        with pytest.raises(RunError, match="The process that loads the model was killed by signal 9"):
            run(batch, ["cpu"], Watch())
    finally:
        stopping.set()
        killer.join()


def test_a_model_that_cannot_be_loaded_is_told_as_it_is(tmp_path: Path) -> None:
    from h2gen.models.catalogue import CATALOGUE, Checkpoint

    missing = Checkpoint("gone", "folder", tmp_path / "gone", None, CATALOGUE["dev"].defaults)
    with (
        Stop() as stop,
        pytest.raises(ModelError, match="gone"),
        Pool(Model(missing, "", "auto", "none", ""), ["cpu"]) as pool,
    ):
        while True:
            list(pool.messages(stop))


@pytest.mark.parametrize(
    ("signals", "levels"),
    [
        ([signal.SIGINT], [Level.PICTURE]),
        ([signal.SIGINT, signal.SIGINT], [Level.PICTURE, Level.STEP]),
        ([signal.SIGTERM], [Level.STEP]),
        ([signal.SIGINT, signal.SIGTERM], [Level.PICTURE, Level.STEP]),
    ],
)
def test_signals_raise_the_level_and_wake_whoever_waits(signals: list[signal.Signals], levels: list[Level]) -> None:
    from multiprocessing.connection import wait

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    seen: list[Level] = []
    with Stop(seen.append) as stop:
        assert wait([stop.fileno()], 0) == []
        for number in signals:
            os.kill(os.getpid(), number)
        assert wait([stop.fileno()], 5) == [stop.fileno()]
        stop.acknowledge()
        assert wait([stop.fileno()], 0) == []
        assert stop.level is levels[-1] and seen == levels
        assert stop.terminated == (signal.SIGTERM in signals)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_third_signal_is_at_once() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: False, 5)
    assert stop.level is Level.NOW


def test_what_a_killed_run_left_unfinished_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".h2gen-abc.partial").write_bytes(b"half a picture")
    (tmp_path / "mine.partial").write_bytes(b"not ours")
    with batch_of(tmp_path, 1).opened():
        assert [path.name for path in tmp_path.glob("*.partial")] == ["mine.partial"]
