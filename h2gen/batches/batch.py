"""A run over many prompts: what of it is done already, and what is made of the rest, safe at every instant."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from h2gen.batches.jobs import Job, Jobs, Shard, file_name, job_id
from h2gen.batches.journal import Journal, read_lines
from h2gen.batches.pool import Pool
from h2gen.batches.queue import BatchObserver, JobQueue, QueuedJob, Tally
from h2gen.batches.stop import Stop
from h2gen.batches.worker import Model, PictureMade, Task
from h2gen.errors import DeviceError, OutputError, RunError
from h2gen.models.content_hash import content_hash
from h2gen.models.memory import choose_device, choose_dtype
from h2gen.models.translate_errors import translated
from h2gen.output.metadata import model_name
from h2gen.output.save import keep, partial_file, sweep


@dataclass(frozen=True)
class BatchOptions:
    """How a run behaves. ``shard`` is the part of the jobs that is made here; ``redo`` makes what is there again, and
    ``batch_size`` pictures are made at once at most."""

    shard: Shard | None = None
    redo: bool = False
    metadata: bool = True
    sidecar: bool = False
    batch_size: int = 1


class Batch:
    """The jobs of one part of a run, in one folder.

    Args:
        jobs: all of the run.
        folder: of the pictures, their record and the list of failures.
        format: of the pictures.
        wishes: see there.
        devices: a worker process for each; none stands for the plan's device.

    Raises:
        DeviceError: a device is not there, or cannot compute in what the others do.
    """

    def __init__(
        self, jobs: Jobs, folder: Path, format: str, wishes: BatchOptions, devices: Sequence[str] = ()
    ) -> None:
        self._jobs, self._folder, self._format, self._wishes = jobs, folder, format, wishes
        self._devices = [choose_device(name) for name in devices or [jobs.plan.device]]
        dtypes = {choose_dtype(jobs.plan.dtype, device) for device in self._devices}
        if len(dtypes) > 1:
            raise DeviceError("The devices compute in different dtypes, which gives different pictures; give --dtype.")
        self._dtype = str(dtypes.pop()).removeprefix("torch.")
        self._model_name = model_name(jobs.plan.checkpoint)
        self._part = "all" if wishes.shard is None else str(wishes.shard)
        self._journal = Journal(folder, "" if wishes.shard is None else str(wishes.shard))
        self._failures: dict[str, str] = {}
        self.twins = 0
        """Jobs that come to the same picture as an earlier one, once the jobs have been counted."""
        self._settled: set[str] = set()

    @cached_property
    def _hash(self) -> str:
        """Of the checkpoint; reading it all takes a while the first time."""
        with translated(self._jobs.plan.checkpoint):
            return content_hash(self._jobs.plan.checkpoint)

    @property
    def workers(self) -> int:
        """Worker processes at most."""
        return len(self._devices)

    @property
    def failures(self) -> Path:
        """The file that lists what failed; it is a prompt file, with the same settings."""
        return self._journal.failures

    def __iter__(self) -> Iterator[tuple[str, Job]]:
        """The jobs of this part, each with its id; of jobs that come to the same picture, the first."""
        seen: set[str] = set()
        twins = 0
        for job in self._jobs:
            if self._wishes.shard is None or self._wishes.shard.takes(job.index):
                identity = job_id(job.settings, self._hash, self._dtype)
                if identity not in seen:
                    seen.add(identity)
                    yield identity, job
                else:
                    twins += 1
        self.twins = twins

    def name(self, identity: str, job: Job) -> str:
        """What a job's picture will be called, unless that name is taken by then."""
        return f"{file_name(job, identity, self._model_name)}.{self._format}"

    def made(self) -> dict[str, Path]:
        """The pictures that are there already, by their jobs' ids; none where all are to be made again."""
        return {} if self._wishes.redo or not self._folder.is_dir() else self._journal.made()

    @contextlib.contextmanager
    def opened(self) -> Iterator[Tally]:
        """Lock the folder, and count what there is to do. The list of failures is written at the end.

        Raises:
            ModelError: the checkpoint's files are missing or damaged.
            OutputError: another run works there, or it cannot be written to.
        """
        self._hash  # noqa: B018 - a checkpoint that cannot be read is found out before anything is written
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"Cannot make the folder {str(self._folder)!r}: {error.strerror}.") from error
        with self._journal:
            sweep(self._folder, self._mark)
            self._journal.clear_orphans()
            self._done = self.made()
            total = skipped = 0
            for identity, _ in self:
                total += 1
                skipped += identity in self._done
            tally = Tally(total, skipped)
            try:
                yield tally
            finally:
                self._list_failures(whole=not tally.left)

    def run(self, tally: Tally, watcher: BatchObserver, stop: Stop, *, watched: bool) -> None:
        """Make what is missing, on a worker process for each device; within ``opened``.

        Raises:
            H2GenError: the model cannot be loaded, or a picture cannot be written (it is then in the temporary
                folder); what was made before is safe.
            KeyboardInterrupt: ``stop`` came to its last level.
        """
        plan = self._jobs.plan
        on_cpu = sum(device.type == "cpu" for device in self._devices)
        threads = max(1, (os.cpu_count() or 1) // on_cpu) if on_cpu > 1 else None
        model = Model(plan.checkpoint, "", self._dtype, plan.offload, self._hash, threads)

        def task_of(pending: QueuedJob) -> Task:
            job = pending.job
            return Task(
                job.settings,
                self._format,
                job.preset,
                pending.id,
                job.source,
                job.notes,
                watched,
                self._wishes.metadata,
                self._wishes.sidecar,
                pending.tiled,
            )

        schedule = JobQueue(
            ((identity, job) for identity, job in self if identity not in self._done),
            tally,
            task_of=task_of,
            keep=self._keep,
            give_up=self._give_up,
            watcher=watcher,
            batch_size=self._wishes.batch_size,
        )
        with Pool(model, [str(device) for device in self._devices[: tally.left]]) as pool:
            schedule.run(pool, stop)

    def _keep(self, pending: QueuedJob, made: PictureMade) -> Path:
        """Write a picture and record it; whenever the program is killed, the record knows what has a name."""
        stem = file_name(pending.job, pending.id, self._model_name)
        path = keep(
            made.data,
            self._folder,
            stem,
            self._format,
            sidecar=made.sidecar,
            before=lambda path, digest, sidecar: self._journal.writing(pending.id, path, digest, sidecar),
            mark=self._mark,
        )
        self._settled.add(pending.id)
        with self._recording():
            facts = {"source": pending.job.source, "seed": made.settings.seed, "seconds": round(made.seconds, 3)}
            self._journal.finished(pending.id, path, {"bytes": len(made.data), **facts})
        return path

    def _give_up(self, pending: QueuedJob, error: str) -> None:
        job = pending.job
        name = file_name(job, pending.id, self._model_name).replace("{", "{{").replace("}", "}}")
        settings = job.settings.to_json()
        if not settings["negative"]:
            del settings["negative"]
        facts = {"name": name, "source": job.source, "error": error, "id": pending.id}
        notes = json.loads(job.notes) if job.notes else {}
        self._failures[pending.id] = json.dumps({**notes, **settings, **facts})
        self._settled.add(pending.id)
        with self._recording():
            self._journal.failed(pending.id, error)

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"The record {str(self._journal.path)!r} could not be written: {error.strerror or error}."
            ) from error

    @property
    def _mark(self) -> str:
        """Of this part's unfinished files."""
        return f"batch-{self._part}-"

    def _list_failures(self, whole: bool) -> None:
        """Write the list of failures anew: this run's, and where it was stopped also what it did not come to."""
        path = self.failures
        earlier = {} if whole else {line["id"]: json.dumps(line) for line in read_lines(path) if "id" in line}
        lines = {**{key: line for key, line in earlier.items() if key not in self._settled}, **self._failures}
        if not lines:
            path.unlink(missing_ok=True)
            return
        text = "".join(line + "\n" for line in lines.values())
        with self._recording(), partial_file(text.encode(), self._folder, self._mark) as file:
            os.replace(file, path)
