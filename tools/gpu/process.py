"""Runs each part in a process of its own, which is killed at its limit, and keeps what it had reported until then.

Imports nothing but the standard library: the command must say at once what it cannot do.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pkgutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LINES = 12
"""Of an error that are kept."""


@dataclass(frozen=True)
class Part:
    """A part of the day.

    Args:
        name: one word.
        title: what it measures.
        function: ``module:function``, called with whether the run is a small one, and a ``Report``.
        limit: seconds until it is killed.
    """

    name: str
    title: str
    function: str
    limit: float


@dataclass(frozen=True)
class Figure:
    """One figure of a part.

    Args:
        share: a time as a share of a full step's without a cache.
        aim: in words; ``met`` is None without one.
    """

    name: str
    value: float | str
    unit: str = ""
    share: float | None = None
    aim: str = ""
    met: bool | None = None


@dataclass
class Result:
    """What became of a part: ``done``, ``failed`` or ``killed``, and the last lines of its error."""

    name: str
    title: str
    limit: float
    status: str = "running"
    seconds: float = 0.0
    error: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Report:
    """Takes a part's figures; each is on its way to the parent process at once.

    Args:
        small: whether times mean nothing, so that their aims are not judged.
    """

    def __init__(self, send: Callable[[Figure], None], small: bool) -> None:
        self._send, self._small = send, small
        self.failed: list[str] = []

    def __call__(
        self,
        name: str,
        value: float | str,
        unit: str = "",
        *,
        share: float | None = None,
        most: float | None = None,
        least: float | None = None,
        timed: bool = False,
    ) -> None:
        """Report a figure.

        Args:
            value: in ``unit``; a share with the unit "%" is 0 to 1. Words, if there is nothing to judge by the aim.
            share: see ``Figure``.
            most, least: its aim, if it has one.
            timed: whether the aim is one of time.
        """
        aim, met = "", None
        if most is not None or least is not None:
            bound = most if most is not None else least
            shown = f"{bound:.3g}" if unit != "%" else f"{100 * float(bound or 0):.3g}"
            aim = f"{'at most' if most is not None else 'at least'} {shown} {unit}".strip()
            if not isinstance(value, str) and not (timed and self._small):
                met = (most is None or value <= most) and (least is None or value >= least)
        self._send(Figure(name, value, unit, share, aim, met))

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """If the block fails, report why and go on; the part is ``failed`` in the end, and keeps its other figures."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - as in _child
            traceback.print_exc()
            self.failed.append(name)
            self(name, f"failed: {type(error).__name__}: {error}"[:300])


def run(part: Part, *, small: bool, limit: float, log: Path, changed: Callable[[Result], None]) -> Result:
    """Run a part in a process of its own.

    Args:
        limit: seconds; at most ``part.limit``.
        log: the file that its output is appended to.
        changed: is called with the result so far, as the part begins, after each figure and in the end. What it raises
            ends the part and is raised again.
    """
    # A forked child starts with torch imported, but must not have touched CUDA; on a GPU only a new process is sure.
    context = multiprocessing.get_context("forkserver" if small else "spawn")
    if small:
        context.set_forkserver_preload(["tools.gpu.preload"])  # type: ignore[attr-defined]
    receiver, sender = context.Pipe(duplex=False)
    log.touch()
    before = log.stat().st_size
    process = context.Process(target=_child, args=(part, small, sender, log))  # type: ignore[attr-defined]
    started = time.monotonic()
    result = Result(part.name, part.title, limit)
    changed(result)

    def messages() -> Iterator[Any]:
        """What the process sends until its limit; if it dies, its status and the error."""
        try:
            process.start()
            sender.close()
            while (left := started + limit - time.monotonic()) > 0 and receiver.poll(left):
                yield receiver.recv()
        except Exception as error:  # noqa: BLE001 - however the process died, the next part begins
            yield "failed", [*_last_lines(log, before), _death(process, error)]

    try:
        for message in messages():
            if not isinstance(message, Figure):
                result.status, result.error = message
                break
            result.figures.append(message)
            result.seconds = time.monotonic() - started
            changed(result)
    except BaseException:  # Ctrl-C, or ``changed`` cannot write the results
        result.status, result.error = "failed", [*_last_lines(log, before), "Stopped with the whole run."]
        raise
    finally:
        if result.status == "running":
            result.status = "killed"
            result.error = [*_last_lines(log, before), f"Killed at its limit of {limit:.0f} s."]
        _end(process)
        receiver.close()
        result.seconds = time.monotonic() - started
        changed(result)
    return result


def _death(process: Any, error: Exception) -> str:
    if process.pid is None:
        return f"The process did not start: {error!r}"
    process.join(10)
    status = process.exitcode
    if status is None:
        return f"Its figures could not be read: {error!r}"
    if status < 0:
        return f"The process was ended by signal {-status} ({signal.strsignal(-status)})."
    return f"The process ended with status {status}."


def _end(process: Any) -> None:
    """Kill a process with all that it has started: compilers, tests."""
    if process.pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(10)  # one that hangs in the GPU's driver is left to itself


def _last_lines(log: Path, begin: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read()[-20_000:].decode(errors="replace").splitlines()[-LINES:]


def _child(part: Part, small: bool, sender: Any, log: Path) -> None:
    os.setsid()  # the leader of a group, which is killed as a whole
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    print(f"\n== {part.name}: {part.title}", flush=True)
    faulthandler.enable()
    report, lines = Report(sender.send, small), list[str]()
    try:
        pkgutil.resolve_name(part.function)(small, report)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is recorded, and the next part goes on
        traceback.print_exc()
        lines = "".join(traceback.format_exception(error)).splitlines()[-LINES:]
    if report.failed:
        lines.append(f"Failed: {'; '.join(report.failed)}. See log.txt.")
    sender.send(("failed" if lines else "done", lines))
