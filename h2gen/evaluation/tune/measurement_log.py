"""The measurement log: what tuning has measured so far, on disk, so that an interrupted search can continue."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from h2gen.batches.journal import append_line, read_lines
from h2gen.errors import OutputError
from h2gen.evaluation.results import IDENTICAL, Case, Sample
from h2gen.files import user_folder
from h2gen.output.metadata import origin, versions
from h2gen.settings.profiles import ProfileKey, file_name

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method
    from h2gen.generation.session import Session
    from h2gen.settings.values import Settings


class MeasurementLog:
    """Values by key, each written as soon as it is known. Use as a context manager, which locks the file.

    Args:
        path: JSON Lines: a header, then one object with ``key`` and ``value`` per line. Incomplete lines, which a kill
            leaves behind, are skipped.
        header: what the values depend on. A log with another header is discarded.

    Raises:
        OutputError: another process is writing to it, or it cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._header = json.loads(json.dumps({"notebook": dict(header)}))
        self._lock = FileLock(path.with_suffix(".lock"))
        self._values: dict[str, Any] = {}

    def __enter__(self) -> MeasurementLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            lines = list(read_lines(self.path))
            if lines and lines[0] == self._header:
                self._values = {line["key"]: line["value"] for line in lines[1:] if {"key", "value"} <= line.keys()}
                self._file = self.path.open("ab", buffering=0)
                self._file.write(b"\n")  # leaves an incomplete line as it is and starts a new one
            else:
                self._file = self.path.open("wb", buffering=0)
                self._write(self._header)
        except Timeout as error:
            raise OutputError(
                f"Another process is tuning the same model and writes to {str(self.path)!r}; wait for it to finish."
            ) from error
        except OSError as error:
            self._lock.release()
            raise OutputError(f"Cannot write {str(self.path)!r}: {error.strerror or error}.") from error
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._lock.release()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The logged value, or else what ``make`` returns, which is logged; plain JSON."""
        if key not in self._values:
            value = make()
            self._write({"key": key, "value": value})
            self._values[key] = value
        return self._values[key]

    def recall(self, key: str) -> Any:
        """The logged value, or None."""
        return self._values.get(key)

    def remove(self) -> None:
        """Delete the log once the profile is written."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _write(self, line: Mapping[str, Any]) -> None:
        append_line(self._file, json.dumps(line))


def open_log(key: ProfileKey, session: Session, settings: Settings) -> MeasurementLog:
    """The log of a profile's measurements, in the user's cache folder.

    Args:
        key: what the profile is for, with the model's content hash.
        session: the loaded model.
        settings: of every image.

    Raises:
        OutputError: there is no home folder.
    """
    try:
        folder = user_folder("cache") / "tune"
    except OSError as error:
        raise OutputError(f"The measurements cannot be kept: {error.strerror}.") from error
    made_with = origin(session)
    shared = {name: value for name, value in settings.to_json().items() if name not in ("prompt", "seed")}
    header = {
        "versions": versions(),
        "model": key.content_hash,
        "device": made_with.device,
        "dtype": made_with.dtype,
        **shared,
    }
    return MeasurementLog(folder / Path(file_name(key)).with_suffix(".jsonl"), header)


class LoggedSamples:
    """The samples of a comparison in a measurement log, without their traces, so that the comparison can continue.

    Args:
        log: where they are kept.
        cases: of the comparison.
    """

    def __init__(self, log: MeasurementLog, cases: Sequence[Case]) -> None:
        self._log, self._cases = log, cases

    def recall(self, case: int, methods: Sequence[Method]) -> Sequence[Sample] | None:
        found = self._log.recall(self._key(case, methods))
        return None if found is None else [_sample(case, each) for each in found]

    def keep(self, case: int, methods: Sequence[Method], samples: Sequence[Sample]) -> None:
        self._log.get(self._key(case, methods), lambda: [_plain(sample) for sample in samples])

    def _key(self, case: int, methods: Sequence[Method]) -> str:
        names = "\n".join(method.name for method in methods)
        where = self._cases[case]
        return json.dumps(["check", hashlib.sha256(names.encode()).hexdigest(), where.prompt, where.seed])


def _plain(sample: Sample) -> dict[str, Any]:
    whole = {name: value for name, value in asdict(sample).items() if name != "trace"}
    whole["scores"] = {name: min(value, IDENTICAL) for name, value in sample.scores.items()}
    return whole


def _sample(case: int, found: Mapping[str, Any]) -> Sample:
    return Sample(**{**found, "case": case, "seconds": tuple(found["seconds"])})
