"""A process that holds a model on one device and makes the pictures it is told to."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from h2gen.cache.trace import StepRecord, Summary
from h2gen.errors import H2GenError, OutOfMemory, UsageError
from h2gen.models.catalogue import Checkpoint
from h2gen.run.settings import Settings

if TYPE_CHECKING:
    from h2gen.run.session import Result, Session


@dataclass(frozen=True)
class Model:
    """What a worker loads, and where."""

    checkpoint: Checkpoint
    device: str
    dtype: str
    offload: str
    content_hash: str
    """For the pictures' metadata."""
    threads: int | None = None
    """For torch on the CPU, where several workers share its cores."""


@dataclass(frozen=True)
class Task:
    """A picture to make. ``watched`` asks for its steps; ``metadata`` go into the picture, ``sidecar`` beside it."""

    settings: Settings
    format: str
    preset: str | None
    notes: Mapping[str, Any]
    watched: bool
    metadata: bool
    sidecar: bool


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    device: str
    dtype: str


@dataclass(frozen=True)
class Stepped:
    """A forward pass of the picture in hand."""

    record: StepRecord


@dataclass(frozen=True)
class Made:
    """The picture in hand, as its file's bytes and the text of the file beside it."""

    data: bytes = field(repr=False)
    sidecar: str | None = field(repr=False)
    settings: Settings
    seconds: float
    summary: Summary | None
    uncached: bool


@dataclass(frozen=True)
class Failed:
    """The picture in hand could not be made; ``again`` says whether another try could help."""

    error: str
    again: bool


@dataclass(frozen=True)
class Stopped:
    """The picture in hand was given up, as it was asked."""


@dataclass(frozen=True)
class Broken:
    """The model could not be loaded."""

    error: H2GenError


Message = Ready | Stepped | Made | Failed | Stopped | Broken


def serve(connection: Connection, model: Model) -> None:
    """The process's main function: load, then make what comes in, until the other side hangs up.

    A Ctrl-C in a terminal reaches all its processes; whoever started this one decides what it means.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        session = _load(model)
    except H2GenError as error:
        connection.send(Broken(error))
        return
    tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(connection, session, tasks, busy), daemon=True).start()
    with contextlib.suppress(OSError):
        connection.send(Ready(str(session.device), str(session.dtype).removeprefix("torch.")))
        while (task := tasks.get()) is not None:
            busy.set()
            message = _make(session, model, task, connection)
            busy.clear()
            connection.send(message)


def _load(model: Model) -> Session:
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    from h2gen.run.session import open_session

    if model.threads is not None:
        import torch

        torch.set_num_threads(model.threads)
    return open_session(model.checkpoint, device=model.device, dtype=model.dtype, offload=model.offload)


def _listen(
    connection: Connection, session: Session, tasks: queue.SimpleQueue[Task | None], busy: threading.Event
) -> None:
    """Hear what comes in while a picture is made: None stops it, and a hung-up line ends the process."""
    try:
        while True:
            task = connection.recv()
            if task is None:
                session.interrupt()
            else:
                tasks.put(task)
    except (EOFError, OSError):
        if busy.is_set():
            os._exit(1)  # in the middle of a step: nobody is left to take the picture
        tasks.put(None)


def _make(session: Session, model: Model, task: Task, connection: Connection) -> Message:
    def on_step(record: StepRecord) -> None:
        connection.send(Stepped(record))

    try:
        return _made(session, model, task, session.run(task.settings, on_step=on_step if task.watched else None))
    except KeyboardInterrupt:
        return Stopped()
    except OutOfMemory as error:
        with contextlib.suppress(OutOfMemory):  # the next try says so too
            session.relieve()
        return Failed(str(error), again=True)
    except UsageError as error:
        return Failed(str(error), again=False)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other pictures are still to be made
        return Failed(str(error) if isinstance(error, H2GenError) else f"{type(error).__name__}: {error}", again=True)


def _made(session: Session, model: Model, task: Task, result: Result) -> Made:
    from h2gen.run.metadata import describe, fitting, origin, to_toml
    from h2gen.run.save import encode

    summary = None if result.trace is None else result.trace.summary
    whole = describe(
        result.settings,
        origin(session, model.content_hash),
        seconds=result.seconds,
        summary=summary,
        uncached=result.uncached,
        preset=task.preset,
        notes=task.notes,
    )
    data = encode(result.image, task.format, fitting(whole, task.format) if task.metadata else None)
    sidecar = to_toml(whole) if task.sidecar else None
    return Made(data, sidecar, result.settings, result.seconds, summary, result.uncached)
