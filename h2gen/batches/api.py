"""``h2gen.batch``: one picture per prompt, from prompt files or a list, resumable; the ``batch`` command calls it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.arguments import check_names
from h2gen.batches.jobs import Job, Jobs, parse_shard
from h2gen.batches.observer import BatchObserver
from h2gen.batches.prompts import Reading, read_prompts
from h2gen.batches.ray_cluster import check_options
from h2gen.batches.result import BatchPicture, BatchResult
from h2gen.batches.stop import Level, Stop
from h2gen.errors import DeviceError, H2GenError, SettingError, Stopped
from h2gen.settings.speedup import Goal
from h2gen.settings.synonyms import meant_or_close
from h2gen.settings.table import BY_NAME, TABLE
from h2gen.wording import shown

if TYPE_CHECKING:
    from h2gen.batches.batch import Batch
    from h2gen.settings.resolve import Request

_SETTINGS = [row.name for row in TABLE if row.is_setting and "batch" in row.commands]


def batch(
    prompts: Iterable[str | Mapping[str, Any]] | None = None,
    *,
    files: Sequence[str | Path] = (),
    observer: BatchObserver | None = None,
    **options: Any,
) -> BatchResult:
    """Make one picture per prompt and seed, on one worker process per device. Repeat it to make only what is missing.

    A picture is on the disk, under its final name, before it counts as made. Ctrl-C stops after the current picture,
    a second one after the current step, a third one at once. In a script call it under
    ``if __name__ == "__main__":``, since every worker process imports the script.

    Args:
        prompts: texts, or mappings with a "prompt" and its own settings, as in a line of a ``.jsonl`` file.
        files: prompt files (``.txt``, ``.yaml``, ``.jsonl``, ``.json``, ``.csv``, ``.tsv``), instead of ``prompts``.
        observer: receives progress events.
        options: the options of ``h2gen batch`` by name, such as ``out="pictures"``, ``preset="quality"``,
            ``seed="1-4"``, ``batch_size=2``, ``redo=True``, ``strict=True``. As on the command line, the
            environment and the configuration file supply what is not given.

    Raises:
        UsageError: an option or a prompt cannot be used; nothing was made.
        ArgumentError: there is no such option.
        Stopped: it was stopped; pictures made before are safe.
        H2GenError: the run could not continue; pictures made before are safe.

    >>> result = h2gen.batch(["a cat", "a red apple"], out="pictures", seed=7)  # doctest: +SKIP
    >>> result.made, result.paths[0]  # doctest: +SKIP
    """
    observer = observer or BatchObserver()
    return prepare(prompts, files=files, observer=observer, **options).run(observer, collect=True)


@dataclass(frozen=True)
class PlannedPicture:
    """A picture that a batch would make. ``path`` is its file if it is there already, else None."""

    id: str
    job: Job
    name: str
    path: Path | None


class PreparedBatch:
    """A batch whose options and prompts have been checked. Nothing has been loaded or written."""

    def __init__(self, jobs: Jobs, batch: Batch, strict: bool = False) -> None:
        self._jobs, self._batch, self._strict = jobs, batch, strict

    @property
    def request(self) -> Request:
        """The settings that all pictures share."""
        return self._jobs.request

    @property
    def notices(self) -> list[str]:
        """Lines that the user should see first."""
        return [*self._jobs.notices, *self._jobs.remarks]

    def planned(self) -> Iterator[PlannedPicture]:
        """Every picture, without making any."""
        done = self._batch.made()
        for id, job in self._batch:
            path = done.get(id)
            yield PlannedPicture(id, job, self._batch.name(id, job) if path is None else path.name, path)

    def run(self, observer: BatchObserver, *, collect: bool = False) -> BatchResult:
        """Make what is missing; see ``batch``. The result has its ``pictures`` only if it is to ``collect`` them, which
        takes memory for each."""
        batch, started = self._batch, time.monotonic()
        pictures: list[BatchPicture] = []
        batch.on_picture = pictures.append if collect else lambda _picture: None
        for notice in self._jobs.notices:
            observer.notice(notice)
        for remark in self._jobs.remarks:
            observer.remark(remark)
        error: H2GenError | None = None
        interrupted = False
        with ExitStack() as to_the_end:  # of what is told, which one more Ctrl-C must not cut off
            with batch.opened() as tally:
                self._check_downloaded(observer)
                observer.counted(tally, batch.duplicates, batch.workers)
                if tally.left:
                    stop = to_the_end.enter_context(Stop(observer.stopping))
                    try:
                        batch.run(tally, observer, stop)
                    except KeyboardInterrupt:
                        interrupted = True
                    except H2GenError as failure:
                        error = failure
                    stop.end()
                    if error is None and (interrupted or stop.level is not Level.NEVER):
                        left = f"Stopped. {tally.left_words}; run the same command to continue."
                        error = Stopped(left, 143 if stop.terminated else 130)
            failures_file = batch.failures_file if tally.failed else None
            seconds = time.monotonic() - started
            observer.ended(tally, seconds, failures_file, error)
        if error is not None:
            raise error
        return BatchResult(
            jobs=tally.jobs,
            skipped=tally.skipped,
            made=tally.made,
            failed=tally.failed,
            seconds=seconds,
            cache=tally.steps,
            pictures=tuple(sorted(pictures, key=lambda picture: picture.index)),
            failures=tuple(sorted(batch.failures, key=lambda failure: failure.index)),
            failures_file=failures_file,
        )

    def _check_downloaded(self, observer: BatchObserver) -> None:
        """Report what became known of the model when it was downloaded: options that it ignores.

        Raises:
            SettingError: it ignores one, and that is an error.
        """
        if self._strict:
            self._jobs.check_strict()
        for remark in self._jobs.find_remarks():
            if remark not in self._jobs.remarks:
                observer.remark(remark)


def prepare(
    prompts: Iterable[str | Mapping[str, Any]] | None = None,
    *,
    files: Sequence[str | Path] = (),
    prompt_key: str | None = None,
    shard: str | None = None,
    redo: bool = False,
    gpus: str | None = None,
    ray: str | None = None,
    ray_slots: int | None = None,
    verbose: bool = False,
    batch_size: int = 1,
    no_metadata: bool = False,
    sidecar: bool = False,
    speedup: float | None = None,
    fidelity: float | None = None,
    policy: str = "auto",
    nearest: bool = False,
    strict: bool = False,
    observer: BatchObserver | None = None,
    **settings: Any,
) -> PreparedBatch:
    """Check everything about a batch that can be checked before a model is loaded; see ``batch``.

    Raises:
        UsageError: an option or a prompt cannot be used.
        ArgumentError: there is no such option.
    """
    from h2gen.output.save import target_of

    own = inspect.signature(prepare).parameters
    check_names("batch", settings, [*(name for name in own if name != "settings"), *_SETTINGS], meant_or_close)
    BY_NAME["batch_size"].check(batch_size, "batch-size")
    part = None if shard is None else parse_shard(shard)
    cluster = None
    if ray is not None or ray_slots is not None:
        cluster = check_options(ray, ray_slots, gpus, settings.get("device"), verbose)
    goal = Goal(speedup, fidelity, policy, nearest)
    jobs = Jobs(_read(prompts, files, prompt_key), settings, goal=goal)
    if strict:
        jobs.check_strict()
    video = jobs.request.settings.frames is not None
    target = target_of(jobs.request.out, jobs.request.format, video=video)
    if target.stem is not None:
        raise SettingError(f"out is {jobs.request.out!r}; a batch needs a folder for its pictures.")
    from h2gen.batches.batch import Batch, BatchOptions  # imports torch; the errors above need not wait for it

    options = BatchOptions(part, redo, not no_metadata, sidecar, batch_size)
    devices = _devices(gpus, settings.get("device"))
    notice = (observer or BatchObserver()).notice
    return PreparedBatch(jobs, Batch(jobs, target.folder, target.format, options, devices, cluster, notice), strict)


def _read(
    prompts: Iterable[str | Mapping[str, Any]] | None, files: Sequence[str | Path], prompt_key: str | None
) -> Reading:
    if (prompts is None) == (not files):
        raise SettingError("Give either prompts or prompt files.")
    if prompts is None:
        return read_prompts([str(file) for file in files], prompt_key)
    if isinstance(prompts, str):
        raise SettingError(f"prompts is {shown(prompts)}; give a list of prompts, or files=[...] with prompt files.")
    reading, key = Reading(), prompt_key or "prompt"
    for number, item in enumerate(prompts, 1):
        entry = {key: item} if isinstance(item, str) else dict(item)
        reading.add_item(f"prompt {number}", entry, key)
    return reading


def _devices(gpus: str | None, device: str | None) -> list[str]:
    """The devices of ``--gpus``: numbers of CUDA devices, or devices as ``--device`` takes them."""
    if gpus is None:
        return []
    if device is not None:
        raise SettingError("--gpus and --device contradict each other; give one.")
    if gpus.strip() == "all":
        from h2gen.models.devices import devices

        count = devices().get("cuda", 0)
        if not count:
            raise DeviceError("--gpus all: this machine has no CUDA device; leave out --gpus.")
        return [f"cuda:{index}" for index in range(count)]
    names = [f"cuda:{part.strip()}" if part.strip().isdecimal() else part.strip() for part in gpus.split(",")]
    if not all(names):
        raise SettingError(f"gpus is {gpus!r}; give all, or numbers such as 0,1.")
    return names
