"""A run with worker processes that really are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from h2gen.batches.batch import Batch, BatchOptions
from h2gen.batches.jobs import Job, Jobs
from h2gen.batches.journal import Journal
from h2gen.batches.messages import Model, PictureMade, Ready
from h2gen.batches.observer import BatchObserver, Tally
from h2gen.batches.pool import Pool, Worker
from h2gen.batches.prompts import Entry, Reading
from h2gen.batches.stop import Level, Stop
from h2gen.batches.worker import load_session
from h2gen.errors import DeviceError, ModelError, RunError
from h2gen.models.catalogue import resolve
from h2gen.models.load_options import LoadOptions
from h2gen.output.metadata import read_metadata
from h2gen.settings.table import MOST_STEPS
from tests.cli.programs import children, wait_for

UNENDING = {"steps": MOST_STEPS}
"""Takes a minute or more: still running when the message of its second step has been read and handled."""
BROKEN = "broken"
BIG = ("1280x1280", "64x64")
ROOM = 520 * 2**20
"""Bytes: 1.5 times what the decoder needs in tiles, two thirds of what it needs for 1280x1280 at once."""
QUICK = {"steps": 4, "cfg": 1.0, "preset": "paper", "device": "cpu"}


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


class Watch(BatchObserver):
    """Records what happens, and does something at each step."""

    wants_steps = True

    def __init__(self, at_step: Callable[[int, Job], None] = lambda _worker, _job: None) -> None:
        self.log: list[tuple[Any, ...]] = []
        self._jobs: dict[int, Job] = {}
        self._at_step = at_step

    def ready(self, ready: Ready) -> None:
        self.log.append(("ready", ready.device, ready.dtype))

    def began(self, worker: int, jobs: Sequence[Job]) -> None:
        self._jobs[worker] = jobs[0]
        self.log.append(("began", len(jobs)))

    def split(self, jobs: Sequence[Job], error: str) -> None:
        self.log.append(("split", [job.index for job in jobs], error))

    def stepped(self, worker: int, record: Any) -> None:
        if record.step == 1:
            self._at_step(worker, self._jobs[worker])

    def saved(self, job: Job, path: Path, made: PictureMade, tally: Tally) -> None:
        self.log.append(("made", job.index))

    def relieved(self, job: Job, notice: str) -> None:
        self.log.append(("relieved", job.index, notice))

    def failed(self, job: Job, error: str, again: bool, tally: Tally) -> None:
        self.log.append(("failed", job.index, error, again))


class Shortening(Watch):
    """Lets a picture that is tried again have a few steps only."""

    def split(self, jobs: Sequence[Job], error: str) -> None:
        super().split(jobs, error)
        for job in jobs:
            self._shorten(job)

    def failed(self, job: Job, *more: Any) -> None:
        super().failed(job, *more)
        self._shorten(job)

    @staticmethod
    def _shorten(job: Job) -> None:
        object.__setattr__(job, "settings", replace(job.settings, steps=QUICK["steps"]))


class Tampered(Jobs):
    """Jobs of which some are for a picture of one pixel, which no option allows."""

    def __iter__(self) -> Iterator[Job]:
        for job in super().__iter__():
            broken = job.settings.prompt == BROKEN
            yield replace(job, settings=replace(job.settings, width=1, height=1)) if broken else job


def batch_of(
    folder: Path,
    prompts: int | list[str],
    workers: int = 1,
    batch_size: int = 1,
    first: Mapping[str, Any] = MappingProxyType({}),
    **given: Any,
) -> Batch:
    """A run with as many prompts, or a list of them, whose seeds are 1, 2, ...; ``first`` are settings of the first."""
    texts = [f"prompt {n}" for n in range(1, prompts + 1)] if isinstance(prompts, int) else prompts
    own = [{"seed": n, **(first if n == 1 else {})} for n in range(1, len(texts) + 1)]
    reading = Reading(
        [Entry(text, f"p.txt:{n}", each, {}) for n, (text, each) in enumerate(zip(texts, own, strict=True), 1)]
    )
    wishes = BatchOptions(batch_size=batch_size)
    return Batch(Tampered(reading, {**QUICK, **given}, {}), folder, "png", wishes, ["cpu"] * workers)


def run(batch: Batch, watch: Watch) -> Tally:
    with batch.opened() as tally, Stop() as stop:
        batch.run(tally, watch, stop)
    return tally


def workers() -> list[int]:
    """Our own worker processes, the oldest first: children of the fork server."""
    servers = [pid for pid in children(os.getpid()) if "forkserver" in Path(f"/proc/{pid}/cmdline").read_text()]
    return sorted(pid for server in servers for pid in children(server))


def kill_worker(number: int = 0) -> None:
    """Kill a worker by its number in the run, if none has been replaced yet."""
    os.kill(workers()[number], signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_is_replaced_and_another_does_its_job(tmp_path: Path) -> None:
    killed: list[int] = []

    def once(worker: int, job: Job) -> None:
        if job.index == 1 and not killed:
            killed.append(job.index)
            kill_worker(worker)  # the other one may still be loading

    watch = Shortening(once)
    tally = run(batch_of(tmp_path, 4, workers=2, first=UNENDING), watch)
    assert (tally.made, tally.failed, tally.left) == (4, 0, 0)
    failures = [entry for entry in watch.log if entry[0] == "failed"]
    assert len(failures) == 1
    assert failures[0][2:] == ("the process that made it was killed by signal 9", True)
    assert sorted(path.name[:4] for path in tmp_path.glob("*.png")) == [f"{n:04}" for n in range(1, 5)]
    assert not workers()


@pytest.mark.slow
def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_done(tmp_path: Path) -> None:
    def always(_worker: int, job: Job) -> None:
        if job.index == 1:
            kill_worker()

    watch = Watch(always)
    batch = batch_of(tmp_path, 2, first=UNENDING)
    tally = run(batch, watch)
    assert (tally.made, tally.failed) == (1, 1)
    assert [entry[3] for entry in watch.log if entry[0] == "failed"] == [True, False]
    assert "killed by signal 9" in batch.failures_file.read_text()


def killed(*_: Any) -> None:
    """The main function of a worker that the system kills while it loads the model."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.posix
def test_a_model_that_kills_whoever_loads_it_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("h2gen.batches.pool.serve", killed)
    with pytest.raises(RunError, match="The process that loads the model was killed by signal 9"):
        run(batch_of(tmp_path, 1), Watch())


@pytest.mark.parametrize(("allowed", "share", "used"), [(1, 3, 1), (3, 2, 2)])
def test_a_worker_has_its_share_of_the_cores_but_no_more_threads_than_the_environment_allows(
    allowed: int, share: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("h2gen.batches.worker.be_quiet", lambda: None)  # this process goes on with other tests
    before = torch.get_num_threads()
    torch.set_num_threads(allowed)  # as torch itself does from OMP_NUM_THREADS
    try:
        load_session(Model(resolve("tiny"), LoadOptions(device="cpu"), "", share))
        assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(before)


def test_once_the_model_is_loaded_deaths_before_that_no_longer_count() -> None:
    near, far = multiprocessing.Pipe()
    worker = object.__new__(Worker)
    worker.connection, worker.ready = near, None
    pool = Pool(Model(resolve("tiny"), LoadOptions(), ""), ["cpu"])
    pool.workers, pool._deaths_while_loading = [worker], 1
    far.send(Ready("cpu", "float32", "none"))
    with Stop() as stop:
        assert [type(message) for _, message in pool.messages(stop)] == [Ready]
    assert pool._deaths_while_loading == 0


def test_a_model_that_cannot_be_loaded_is_told_as_it_is(tmp_path: Path) -> None:
    from h2gen.models.catalogue import CATALOGUE, Checkpoint

    missing = Checkpoint("gone", "folder", tmp_path / "gone", None, CATALOGUE["dev"].defaults)
    with (
        Stop() as stop,
        pytest.raises(ModelError, match="gone"),
        Pool(Model(missing, LoadOptions(), ""), ["cpu"]) as pool,
    ):
        while True:
            list(pool.messages(stop))


@pytest.mark.posix
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
        assert wait([stop.wake_up], 0) == []
        for number in signals:
            os.kill(os.getpid(), number)
        assert wait([stop.wake_up], 5) == [stop.wake_up]
        stop.acknowledge()
        assert wait([stop.wake_up], 0) == []
        assert stop.level is levels[-1]
        assert stop.terminated == (signal.SIGTERM in signals)
        stop.end()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.level is levels[-1] and seen == levels
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.posix
def test_the_third_signal_is_at_once() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: False, 5)
    assert stop.level is Level.NOW


def test_what_a_killed_run_left_unfinished_is_swept_up(tmp_path: Path) -> None:
    others = {".h2gen-abc.partial", ".h2gen-batch-1of2-abc.partial", "mine.partial"}
    for name in (*others, ".h2gen-batch-all-abc.partial"):
        (tmp_path / name).write_bytes(b"half a picture")
    with batch_of(tmp_path, 1).opened():
        assert {path.name for path in tmp_path.iterdir() if path.suffix == ".partial"} == others


def test_whatever_goes_wrong_in_a_worker_costs_that_picture_alone(tmp_path: Path) -> None:
    """A picture of one pixel represents unexpected errors."""
    watch = Watch()
    batch = batch_of(tmp_path, ["one", BROKEN, "three"])
    tally = run(batch, watch)
    assert (tally.made, tally.failed) == (2, 1)
    assert [(entry[1], entry[3]) for entry in watch.log if entry[0] == "failed"] == [(2, True), (2, False)]
    listed = json.loads(batch.failures_file.read_text())
    assert "RuntimeError: " in listed["error"] and listed["name"] == f"0002-{BROKEN}-2"


@pytest.mark.slow
def test_pictures_that_go_together_are_made_together_and_are_those_made_alone(tmp_path: Path) -> None:
    """The third has another size, so it cannot be batched."""
    texts = ["a cat", "a red apple", BROKEN, "a butterfly", "a car", "a cake"]
    watch = Watch()
    tally = run(batch_of(tmp_path / "together", texts, batch_size=2), watch)
    assert (tally.made, tally.failed, tally.steps.steps) == (5, 1, 5 * QUICK["steps"])
    assert [entry[1] for entry in watch.log if entry[0] == "began"] == [2, 1, 1, 2, 1]  # the third is tried twice
    assert [entry[1] for entry in watch.log if entry[0] == "made"] == [1, 2, 4, 5, 6]
    run(batch_of(tmp_path / "alone", texts), Watch())
    for path in sorted((tmp_path / "alone").glob("*.png")):
        other = tmp_path / "together" / path.name
        assert np.abs(pixels(path).astype(int) - pixels(other)).max() <= 1
        one, two = read_metadata(path), read_metadata(other)
        assert one.settings == two.settings
        assert {**one.everything["cache"], "seconds": 0} == {**two.everything["cache"], "seconds": 0}


@pytest.mark.slow
def test_a_batch_whose_worker_is_killed_is_made_one_by_one(tmp_path: Path) -> None:
    killed: list[int] = []

    def once(worker: int, job: Job) -> None:
        if not killed:
            killed.append(job.index)
            kill_worker(worker)

    watch = Shortening(once)
    tally = run(batch_of(tmp_path, 3, batch_size=3, **UNENDING), watch)
    assert (tally.made, tally.failed) == (3, 0)
    assert [entry[1] for entry in watch.log if entry[0] == "split"] == [[1, 2, 3]]
    assert [entry[1] for entry in watch.log if entry[0] == "began"] == [3, 1, 1, 1]
    assert not [entry for entry in watch.log if entry[0] == "failed"]


@pytest.mark.posix
def test_stopping_gives_up_all_that_is_made_together(tmp_path: Path) -> None:
    told: list[int] = []

    def once(_worker: int, job: Job) -> None:
        if not told:
            told.append(job.index)
            os.kill(os.getpid(), signal.SIGTERM)

    tally = run(batch_of(tmp_path, 4, batch_size=2, **UNENDING), Watch(once))
    assert (tally.made, tally.failed, tally.left) == (0, 0, 4)


@pytest.mark.slow
def test_a_picture_that_memory_does_not_suffice_for_is_decoded_in_tiles_and_no_other(tmp_path: Path) -> None:
    """The workers' address space is limited, so that the decoder actually runs out of memory."""
    resource = pytest.importorskip("resource", reason="needs POSIX")
    plain = batch_of(tmp_path / "plain", ["a cat"], steps=1, size="64x64")
    run(plain, Watch())

    def limit() -> None:
        for pid in workers():
            size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(pid, resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))

    class Limiting(Watch):
        def began(self, worker: int, jobs: Sequence[Job]) -> None:
            super().began(worker, jobs)
            limit()

    watch = Limiting()
    reading = Reading([Entry("a cat", f"p.txt:{n}", {"seed": 1, "size": size}, {}) for n, size in enumerate(BIG, 1)])
    batch = Batch(Jobs(reading, {**QUICK, "steps": 1}, {}), tmp_path / "tiled", "png", BatchOptions(), ["cpu"])
    tally = run(batch, watch)
    assert (tally.made, tally.failed) == (2, 0), watch.log
    assert [entry for entry in watch.log if entry[0] in ("failed", "relieved")] == [
        ("relieved", 1, "Out of memory on cpu; trying again with tiled decoding.")
    ]
    big, small = (read_metadata(path) for path in sorted((tmp_path / "tiled").glob("*.png")))
    assert (big.tiled, small.tiled) == (True, False)
    (alone,) = (tmp_path / "plain").glob("*.png")
    assert np.array_equal(pixels(alone), pixels(tmp_path / "tiled" / "0002-a-cat-1.png"))


def test_failures_that_a_stopped_run_did_not_come_to_stay_listed(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, [BROKEN, "two"])
    run(batch, Watch())
    before = batch.failures_file.read_text()
    with batch_of(tmp_path, [BROKEN, "two"]).opened() as tally:
        assert tally.left == 1
    assert batch.failures_file.read_text() == before


def test_a_picture_that_an_earlier_version_named_otherwise_is_not_made_again(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, ["猫"])
    ((id, job),) = batch
    assert batch.name(id, job) == "0001-猫-1.png"
    old = tmp_path / "0001-picture-1.png"
    old.write_bytes(b"picture")
    with Journal(tmp_path) as journal:
        journal.finished(id, old, {"bytes": 7})
    with batch.opened() as tally:
        assert (tally.skipped, tally.left) == (1, 0)


def test_devices_that_compute_differently_are_refused(tmp_path: Path) -> None:
    reading = Reading([Entry("a cat", "p.txt:1", {}, {})])
    with pytest.raises(DeviceError, match=r"CUDA|'cuda:9'"):
        Batch(Jobs(reading, QUICK, {}), tmp_path, "png", BatchOptions(), ["cpu", "cuda:9"])
    # The configuration's device does not matter if devices are named.
    Batch(Jobs(reading, {"steps": 2}, {"H2GEN_DEVICE": "cuda:9"}), tmp_path, "png", BatchOptions(), ["cpu"])
