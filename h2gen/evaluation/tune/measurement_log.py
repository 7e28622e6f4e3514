"""The measurement log: what a tuning or a frontier has measured so far, on disk, so that it can continue."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

import h2gen.cache
from h2gen.batches.journal import append_line, read_lines
from h2gen.cache import Outcome, StageRecord, StepRecord
from h2gen.errors import OutputError
from h2gen.evaluation.results import IDENTICAL, Case, Sample
from h2gen.evaluation.videos import Shown, keep_exactly, kept_picture, kept_video
from h2gen.files import user_folder
from h2gen.output.metadata import origin, versions
from h2gen.settings.profiles import ProfileKey, file_name

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method
    from h2gen.evaluation.metrics import MetricInfo
    from h2gen.generation.session import Session
    from h2gen.settings.values import Settings


class MeasurementLog:
    """Values by key, each written as soon as it is known. Use as a context manager.

    Args:
        path: JSON Lines: a header, then one object with ``key`` and ``value`` per line. Incomplete lines, which a kill
            leaves behind, are skipped.
        header: what the values depend on.
        shared: several processes may write to it at once; each reads only what was there when it started. A file with
            another header is refused. If not shared, the file is locked, and one with another header is discarded.

    Raises:
        OutputError: another process is writing to it, it holds something else, or it cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, shared: bool = False) -> None:
        self.path = path
        self._header = json.loads(json.dumps({"notebook": dict(header)}))
        self._shared = shared
        self._lock = FileLock(path.with_suffix(".lock"), timeout=10 if shared else 0)
        self._values: dict[str, Any] = {}

    def __enter__(self) -> MeasurementLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            lines = list(read_lines(self.path))
            if lines and lines[0] == self._header:
                self._values = {line["key"]: line["value"] for line in lines[1:] if {"key", "value"} <= line.keys()}
                self._file = self.path.open("ab", buffering=0)
                self._file.write(b"\n")  # leaves an incomplete line as it is and starts a new one
            else:
                if self._shared and not self._begun_only():
                    raise OutputError(self._refusal(lines))
                self._file = self.path.open("wb", buffering=0)
                append_line(self._file, json.dumps(self._header))
            if self._shared:
                self._file = self._reopened()
        except Timeout as error:
            raise OutputError(
                f"Another process is measuring the same model and writing to {str(self.path)!r}; wait for it to finish."
            ) from error
        except OutputError:
            self._lock.release()
            raise
        except OSError as error:
            self._lock.release()
            raise OutputError(f"Cannot write {str(self.path)!r}: {error.strerror or error}.") from error
        return self

    def _reopened(self) -> Any:
        """The file for appending, unlocked: another process may append to it too."""
        self._file.close()
        self._lock.release()
        return self.path.open("ab", buffering=0)

    def _begun_only(self) -> bool:
        """Whether there is no file, or nothing but a part of the header, which a kill or a full disk leaves behind."""
        whole = json.dumps(self._header).encode()
        if not self.path.exists():
            return True
        with self.path.open("rb") as file:
            return whole.startswith(file.read(len(whole) + 1))

    def _refusal(self, lines: Sequence[Mapping[str, Any]]) -> str:
        """Why a file cannot be continued."""
        there = lines[0].get("notebook") if lines else None
        if not isinstance(there, dict):
            return f"{str(self.path)!r} is not a measurement log; give another file."
        here = self._header["notebook"]
        names = [name for name in here if here[name] != there.get(name)] or ["other settings"]
        return (
            f"{str(self.path)!r} was measured under other conditions ({', '.join(names)}), which cannot be mixed with "
            "these; give another file."
        )

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._lock.release()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The logged value, or else what ``make`` returns, which is logged; plain JSON."""
        if key not in self._values:
            self.put(key, make())
        return self._values[key]

    def put(self, key: str, value: Any) -> None:
        """Log a value in place of an earlier one."""
        self._write({"key": key, "value": value})
        self._values[key] = value

    def recall(self, key: str) -> Any:
        """The logged value, or None."""
        return self._values.get(key)

    def remove(self) -> None:
        """Delete the log once the profile is written."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            with self._lock:  # reentrant: if it was locked before, it stays locked
                append_line(self._file, json.dumps(line))
        except (OSError, Timeout) as error:
            raise OutputError(
                f"Cannot write {str(self.path)!r}: {getattr(error, 'strerror', None) or error}."
            ) from error


def open_log(key: ProfileKey, session: Session, settings: Settings, loading: Mapping[str, str]) -> MeasurementLog:
    """The log of a profile's measurements, in the user's cache folder.

    Args:
        key: what the profile is for, with the model's content hash.
        session: the loaded model.
        settings: of every image.
        loading: what the user asked the model to be loaded with, as ``LoadOptions.loading``; the session may have
            chosen an offloading by itself.

    Raises:
        OutputError: there is no home folder.
    """
    name = file_name(key, loading)
    return MeasurementLog((_folder("cache") / "tune" / name).with_suffix(".jsonl"), _header(key, session, settings))


def open_shared_log(key: ProfileKey, session: Session, settings: Settings, path: Path | None = None) -> MeasurementLog:
    """The log of a frontier's measurements, which several processes may write.

    Args:
        key: the situation, with the model's content hash.
        session: the loaded model.
        settings: of every image.
        path: the file; None uses one in the user's data folder, for this model, these settings and these versions.

    Raises:
        OutputError: there is no home folder.
    """
    header = _header(key, session, settings)
    if path is None:
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
        path = _folder("data") / "frontier" / f"{Path(file_name(key)).stem}-{digest[:8]}.jsonl"
    return MeasurementLog(path, header, shared=True)


def _folder(kind: str) -> Path:
    try:
        return user_folder(kind)
    except OSError as error:
        raise OutputError(f"The measurements cannot be kept: {error.strerror}.") from error


def _header(key: ProfileKey, session: Session, settings: Settings) -> dict[str, Any]:
    """Everything that a picture and its timing depend on, except prompt, seed and method."""
    made_with = origin(session)
    shared = {name: value for name, value in settings.to_json().items() if name not in ("prompt", "seed")}
    return {
        "versions": versions(),
        "model": key.content_hash,
        "device": made_with.device,
        "dtype": made_with.dtype,
        **made_with.changing,
        **made_with.recorded,
        **shared,
    }


class LoggedSamples:
    """The samples of a comparison in a measurement log, one per picture, so that the comparison can continue.

    Args:
        log: where they are kept.
        cases: of the comparison.
        metrics: those that every sample must have, from the same source; otherwise it is measured again.
        pictures: a folder for the uncached pictures, so that they are not made again; None keeps none.
        every: keep all pictures there, and H2-Cache's decisions. A sample without them is measured again.
        videos: the cases are videos.
    """

    def __init__(
        self,
        log: MeasurementLog,
        cases: Sequence[Case],
        metrics: Sequence[MetricInfo],
        *,
        pictures: Path | None = None,
        every: bool = False,
        videos: bool = False,
    ) -> None:
        self._videos = videos
        self._log, self._cases, self._pictures, self._every = log, cases, pictures, every
        self._sources = {metric.name: metric.source for metric in metrics}
        self._session = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._sessions: set[str] = set()

    @property
    def notices(self) -> list[str]:
        """A line if the timings of the samples asked for come from several runs of the program."""
        if len(self._sessions) < 2:
            return []
        first, last = min(self._sessions), max(self._sessions)
        return [
            f"The seconds come from {len(self._sessions)} sessions, the first begun at {first}, the last at {last}; "
            "the machine may not have been equally busy, so compare the shares of blocks instead."
        ]

    def recall(self, method: Method, case: int) -> Sample | None:
        """The sample of a picture, if it was measured before."""
        found = self._log.recall(self._key(method, case))
        if found is None or any(found["sources"].get(name) != source for name, source in self._sources.items()):
            return None
        if self._every and not self._file(method, case).is_file():
            return None
        self._sessions.add(found["session"])
        fields = {name: value for name, value in found.items() if name not in ("sources", "session")}
        trace = tuple(map(_step, fields.pop("trace")))
        return Sample(**{**fields, "case": case, "seconds": tuple(found["seconds"]), "trace": trace})

    def picture(self, method: Method, case: int) -> Shown | None:
        """A picture that was kept, exactly as it was."""
        if self._pictures is None:
            return None
        file = self._file(method, case)
        return kept_video(file) if self._videos else kept_picture(file)

    def keep(self, method: Method, case: int, sample: Sample, image: Shown) -> None:
        """Write a sample, and its picture if it is one that is kept.

        Raises:
            OutputError: they cannot be written.
        """
        if self._pictures is not None and (self._every or method.kind == "reference"):
            keep_exactly(image, self._file(method, case))
        whole = {name: value for name, value in asdict(sample).items() if name != "trace"}
        whole |= {"picture": "", "scores": {name: min(value, IDENTICAL) for name, value in sample.scores.items()}}
        trace = [step.to_json() for step in sample.trace] if self._every else []
        self._log.put(
            self._key(method, case), {**whole, "trace": trace, "sources": self._sources, "session": self._session}
        )
        self._sessions.add(self._session)

    def value(self, method: Method, case: Case, make: Callable[[], float]) -> float:
        """A method's score on another case: the logged one, or else what ``make`` returns."""
        return float(self._log.get(_key("score", method, case), make))

    def _file(self, method: Method, case: int) -> Path:
        assert self._pictures is not None
        name = hashlib.sha256(self._key(method, case).encode()).hexdigest()[:32]
        return self._pictures / f"{name}.{'npz' if self._videos else 'png'}"

    def _key(self, method: Method, case: int) -> str:
        """A method with all its settings, and a case."""
        return _key("picture", method, self._cases[case])


def _key(what: str, method: Method, case: Case) -> str:
    detail = {name: value for name, value in method.detail.items() if name != "target_share"}
    code = [_own_code()] if method.kind == "h2" else []
    return json.dumps([what, method.name, method.steps, method.solver, detail, case.prompt, case.seed, *code])


@cache
def _own_code() -> str:
    """A digest of H2-Cache's code, which changes in a checkout without a new version."""
    folder = Path(h2gen.cache.__path__[0])
    sources = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:16]


def _step(found: Mapping[str, Any]) -> StepRecord:
    stages = {
        name: StageRecord(found[name]["change"], Outcome(found[name]["outcome"])) for name in ("structure", "detail")
    }
    return StepRecord(**{**found, **stages}, run=0)
