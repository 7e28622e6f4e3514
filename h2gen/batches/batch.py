"""A run over many prompts: finds what exists and makes the rest, so that a kill at any time loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from h2gen.batches.jobs import Job, Jobs, Shard, file_name, job_id
from h2gen.batches.journal import Journal, read_lines
from h2gen.batches.messages import Model, PictureMade, Task
from h2gen.batches.observer import BatchObserver, Tally
from h2gen.batches.pool import AnyPool, Pool
from h2gen.batches.queue import JobQueue, QueuedJob
from h2gen.batches.ray_cluster import RayOptions, device_and_dtype
from h2gen.batches.result import BatchFailure, BatchPicture
from h2gen.batches.stop import Stop
from h2gen.batches.truncated import Truncated
from h2gen.errors import DeviceError, OutputError, RunError
from h2gen.files import write_whole
from h2gen.models.attention import check_attention
from h2gen.models.catalogue import model_name
from h2gen.models.content_hash import content_hash
from h2gen.models.devices import choose_device, choose_dtype
from h2gen.models.translate_errors import translated
from h2gen.output.save import keep, sweep
from h2gen.settings.inputs import InputFile
from h2gen.settings.values import FILES
from h2gen.settings.workload import work_of


@dataclass(frozen=True)
class BatchOptions:
    """How a run behaves.

    Args:
        shard: the part of the jobs to make; None makes all.
        redo: make existing pictures again.
        metadata: write into each picture how it was made.
        sidecar: also write it into a ``.toml`` next to each picture.
        batch_size: pictures per batch.
    """

    shard: Shard | None = None
    redo: bool = False
    metadata: bool = True
    sidecar: bool = False
    batch_size: int = 1


class Batch:
    """The jobs of one part of a run, in one folder.

    Args:
        jobs: all jobs of the run.
        folder: for the pictures, their journal and the list of failures.
        format: of the pictures.
        options: how the run behaves.
        devices: one worker process per device; empty means the device in the settings.
        ray: workers in a cluster instead.
        notice: is called with a line for the user before the cluster is asked.

    Raises:
        DeviceError: a device does not exist, or computes in another dtype than the others.
    """

    def __init__(
        self,
        jobs: Jobs,
        folder: Path,
        format: str,
        options: BatchOptions,
        devices: Sequence[str] = (),
        ray: RayOptions | None = None,
        notice: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._jobs, self._format, self._options = jobs, format, options
        self.folder = folder
        self._ray = ray
        if ray is None:
            self._devices = [choose_device(name) for name in devices or [jobs.request.load.device]]
            dtypes = {choose_dtype(jobs.request.load.dtype, device) for device in self._devices}
            for device in self._devices:
                check_attention(jobs.request.settings.attention, str(device), jobs.request.load.dtype)
        else:
            device, dtype = device_and_dtype(ray, jobs.request.load, notice)
            self._devices, dtypes = [device], {dtype}
        if len(dtypes) > 1:
            raise DeviceError("The devices compute in different dtypes, which gives different pictures; give --dtype.")
        self._dtype = str(dtypes.pop()).removeprefix("torch.")
        self._model_name = model_name(jobs.request.checkpoint)
        self._part = "all" if options.shard is None else str(options.shard)
        self._journal = Journal(folder, "" if options.shard is None else str(options.shard))
        self._failed_lines: dict[str, str] = {}
        self._finished: set[str] = set()
        self._done: dict[str, Path] = {}
        self.duplicates = 0
        """Jobs that make the same picture as an earlier one, known once the jobs have been iterated over."""
        self.on_picture: Callable[[BatchPicture], None] = lambda _picture: None
        """Is called with each picture that existed before, and each that is made."""
        self.failures: list[BatchFailure] = []

    @cached_property
    def _content_hash(self) -> str:
        """Hash of the checkpoint; computing it takes a while the first time."""
        with translated(self._jobs.request.checkpoint):
            return content_hash(self._jobs.request.checkpoint)

    @property
    def workers(self) -> int:
        """Worker processes at most; 0 if that depends on a cluster that has not been joined yet."""
        return len(self._devices) if self._ray is None else self._ray.slots or 0

    @property
    def failures_file(self) -> Path:
        """Lists the jobs that failed, as a prompt file for the same pictures."""
        return self._journal.failures

    def __iter__(self) -> Iterator[tuple[str, Job]]:
        """The jobs of this part with their ids; of jobs that make the same picture, only the first."""
        seen: set[str] = set()
        duplicates = 0
        for job in self._jobs:
            if self._options.shard is None or self._options.shard.takes(job.index):
                id = job_id(job.settings, self._content_hash, self._dtype, self._jobs.request.load.changing)
                if id not in seen:
                    seen.add(id)
                    yield id, job
                else:
                    duplicates += 1
        self.duplicates = duplicates

    def name(self, id: str, job: Job) -> str:
        """The file name of a job's picture, unless it is taken when it is saved."""
        return f"{self._stem(id, job)}.{self._format}"

    def made(self) -> dict[str, Path]:
        """The existing pictures, by job id; empty if all are to be made again."""
        return {} if self._options.redo or not os.path.isdir(self.folder) else self._journal.made()

    @contextlib.contextmanager
    def opened(self) -> Iterator[Tally]:
        """Lock the folder and count what there is to do. Writes the list of failures at the end.

        Raises:
            ModelError: the checkpoint's files are missing or damaged.
            OutputError: another run is using it, or it cannot be written to.
        """
        self._content_hash  # noqa: B018 - an unreadable checkpoint must be found before anything is written
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"Cannot create the folder {str(self.folder)!r}: {error.strerror}.") from error
        with self._journal:
            sweep(self.folder, self._owner)
            self._journal.clear_orphans()
            self._done = self.made()
            self._failed_lines, self._finished, self.failures = {}, set(), []
            tally = Tally(0)
            for id, job in self:
                tally.jobs += 1
                tally.noun = job.settings.noun
                if id in self._done:
                    tally.skipped += 1
                    self.on_picture(BatchPicture.of(id, job, self._done[id]))
            try:
                yield tally
            finally:
                self._write_failures(complete=not tally.left)

    def run(self, tally: Tally, observer: BatchObserver, stop: Stop) -> None:
        """Make what is missing, on one worker process per device. Call it within ``opened``.

        Raises:
            H2GenError: the model cannot be loaded, or a picture cannot be written (it is then in the temporary
                folder); pictures made before are safe.
            KeyboardInterrupt: ``stop`` reached its last level.
        """
        request, options = self._jobs.request, self._options
        on_cpu = sum(device.type == "cpu" for device in self._devices)
        threads = max(1, (os.cpu_count() or 1) // on_cpu) if on_cpu > 1 else None
        work = work_of(request.settings, request.checkpoint, options.batch_size)
        how = replace(request.load, dtype=self._dtype)
        model = Model(request.checkpoint, how, self._content_hash, threads, work, request.settings.attention)

        def task_of(queued: QueuedJob) -> Task:
            job = queued.job
            return Task(
                job.settings,
                self._format,
                job.preset,
                queued.id,
                job.source,
                job.notes,
                observer.wants_steps,
                options.metadata,
                options.sidecar,
                queued.tiled,
            )

        truncated = Truncated(observer.remark)

        def keep(queued: QueuedJob, made: PictureMade) -> Path:
            path = self._keep(queued, made)
            truncated.add(queued.job, made.unread)
            return path

        queue: JobQueue[Any] = JobQueue(
            self._missing(),
            tally,
            task_of=task_of,
            keep=keep,
            give_up=self._give_up,
            observer=observer,
            batch_size=options.batch_size,
        )
        with self._pool(model, tally.left, observer) as pool:
            try:
                queue.run(pool, stop)
            finally:
                truncated.close()

    def _pool(self, model: Model, most: int, observer: BatchObserver) -> AbstractContextManager[AnyPool[Any]]:
        """The workers, at most ``most`` of them."""
        if self._ray is None:
            return Pool(model, [str(device) for device in self._devices[:most]])
        from h2gen.batches.ray_pool import RayPool  # loads Ray

        model = replace(model, options=replace(model.options, device=self._devices[0].type))
        return RayPool(model, self._ray, most, observer.notice)

    def _missing(self) -> Iterator[tuple[str, Job]]:
        """The jobs to make, in their order, except that those with the same LoRAs follow one another."""
        missing = ((id, job) for id, job in self if id not in self._done)
        if not self._jobs.mixes_loras:
            return missing
        alike: dict[tuple[InputFile, ...], list[tuple[str, Job]]] = {}
        for id, job in missing:
            alike.setdefault(job.settings.lora, []).append((id, job))
        return chain.from_iterable(alike.values())

    def _stem(self, id: str, job: Job) -> str:
        return file_name(job, id, self._model_name)

    def _keep(self, queued: QueuedJob, made: PictureMade) -> Path:
        """Write a picture and record it; even after a kill, the journal has every picture that has a name."""
        job = queued.job
        path = keep(
            made.data,
            self.folder,
            self._stem(queued.id, job),
            self._format,
            sidecar=made.sidecar,
            before=lambda path, digest, sidecar: self._journal.writing(queued.id, path, digest, sidecar),
            owner=self._owner,
        )
        self._finished.add(queued.id)
        with self._recording():
            facts = {"source": job.source, "seed": made.settings.seed, "seconds": round(made.seconds, 3)}
            self._journal.finished(queued.id, path, {"bytes": len(made.data), **facts})
        self.on_picture(BatchPicture.of(queued.id, job, path, made))
        return path

    def _give_up(self, queued: QueuedJob, error: str) -> None:
        job = queued.job
        name = self._stem(queued.id, job).replace("{", "{{").replace("}", "}}")
        settings = job.settings.to_json()
        if not settings["negative"]:
            del settings["negative"]
        for each in FILES:
            if each in settings:
                settings[each] = [file.typed() for file in getattr(job.settings, each)]
        facts = {"name": name, "source": job.source, "error": error, "id": queued.id}
        notes = json.loads(job.notes) if job.notes else {}
        self._failed_lines[queued.id] = json.dumps({**notes, **settings, **facts})
        self._finished.add(queued.id)
        self.failures.append(BatchFailure(queued.id, job.index, job.source, job.settings, error))
        with self._recording():
            self._journal.failed(queued.id, error)

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"The journal {str(self._journal.path)!r} could not be written: {error.strerror or error}."
            ) from error

    @property
    def _owner(self) -> str:
        """Marks this part's unfinished files."""
        return f"batch-{self._part}-"

    def _write_failures(self, complete: bool) -> None:
        """Write the list of failures: this run's, and, if it was stopped, earlier ones that it did not reach."""
        path = self.failures_file
        earlier = {} if complete else {line["id"]: json.dumps(line) for line in read_lines(path) if "id" in line}
        lines = {**{id: line for id, line in earlier.items() if id not in self._finished}, **self._failed_lines}
        if not lines:
            path.unlink(missing_ok=True)
            return
        text = "".join(line + "\n" for line in lines.values())
        with self._recording():
            write_whole(path, text, self._owner)
