"""A process that holds a model on one device and makes the pictures it is told to, one or several at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from h2gen.cache.trace import StepRecord, Summary
from h2gen.errors import H2GenError, OutOfMemory, UsageError
from h2gen.models.catalogue import Checkpoint
from h2gen.settings.values import Settings

if TYPE_CHECKING:
    from h2gen.generation.session import Result, Session


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
    """A picture to make.

    ``notes`` is JSON text: whatever stood in a prompt file crosses as it is. ``watched`` asks for the picture's steps;
    ``metadata`` go into it, ``sidecar`` beside it. ``tiled`` has it decoded in tiles.
    """

    settings: Settings
    format: str
    preset: str | None
    job: str
    source: str
    notes: str | None
    watched: bool
    metadata: bool
    sidecar: bool
    tiled: bool = False


@dataclass(frozen=True)
class Ready:
    """The model is loaded. ``offload`` is the mode in use."""

    device: str
    dtype: str
    offload: str


@dataclass(frozen=True)
class Stepped:
    """A forward pass of a picture in hand; its ``picture`` counts them from 0."""

    record: StepRecord


@dataclass(frozen=True)
class PictureMade:
    """The first picture in hand that was not heard of yet, as its file's bytes and the text of the file beside it.

    ``described`` says whether the metadata that were wanted are in it.
    """

    data: bytes = field(repr=False)
    sidecar: str | None = field(repr=False)
    described: bool
    settings: Settings
    seconds: float
    summary: Summary | None
    uncached: bool


@dataclass(frozen=True)
class Failed:
    """The picture in hand could not be made, nor any that was made together with it.

    ``again`` says whether another try could help. ``exhausted`` says that memory ran out. ``sick`` says that the
    process has ended itself: what failed in it may fail whatever it does next.
    """

    error: str
    again: bool
    exhausted: bool = False
    sick: bool = False


@dataclass(frozen=True)
class Stopped:
    """What is in hand was given up, as it was asked."""


@dataclass(frozen=True)
class Broken:
    """The model could not be loaded."""

    error: H2GenError


Message = Ready | Stepped | PictureMade | Failed | Stopped | Broken


def serve(connection: Connection, model: Model) -> None:
    """The process's main function: load, then make what comes in, until the other side hangs up.

    A Ctrl-C in a terminal reaches all its processes; whoever started this one decides what it means.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    unblock_interrupts()
    try:
        session = _load(model)
    except H2GenError as error:
        connection.send(Broken(error))
        return
    tasks: queue.SimpleQueue[Sequence[Task] | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(connection, session, tasks, busy), daemon=True).start()
    with contextlib.suppress(OSError):
        connection.send(Ready(str(session.device), str(session.dtype).removeprefix("torch."), session.offload))
        while (together := tasks.get()) is not None:
            busy.set()
            answers = _make(session, model, together, connection)
            busy.clear()
            for message in answers:
                connection.send(message)
                if isinstance(message, Failed) and message.sick:
                    return


def unblock_interrupts() -> None:
    """Let go of what ``interrupts_blocked`` blocked; a process inherits it from the one that starts it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """While a process is started: a Ctrl-C would end it before it has said that it ignores them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _load(model: Model) -> Session:
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    from h2gen.generation.session import open_session

    for name in ("diffusers", "transformers", "huggingface_hub"):
        logger = logging.getLogger(name)  # whoever started us has the terminal
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    warnings.simplefilter("ignore")
    if model.threads is not None:
        import torch

        torch.set_num_threads(model.threads)
    return open_session(model.checkpoint, device=model.device, dtype=model.dtype, offload=model.offload)


def _listen(
    connection: Connection, session: Session, tasks: queue.SimpleQueue[Sequence[Task] | None], busy: threading.Event
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


def _make(session: Session, model: Model, together: Sequence[Task], connection: Connection) -> Sequence[Message]:
    """What became of the pictures: each made, in their order, or one answer for all."""

    def on_step(record: StepRecord) -> None:
        connection.send(Stepped(record))

    try:
        watcher, settings = on_step if together[0].watched else None, [task.settings for task in together]
        results = session.run_together(settings, on_step=watcher, tiled=together[0].tiled)
        return [_made(session, model, task, result) for task, result in zip(together, results, strict=True)]
    except KeyboardInterrupt:
        return [Stopped()]
    except OutOfMemory as error:
        return [Failed(str(error), again=True, exhausted=True, sick=True)]  # only its end gives all memory back
    except UsageError as error:
        return [Failed(str(error), again=False)]
    except H2GenError as error:
        return [Failed(str(error), again=True)]
    except Exception as error:  # noqa: BLE001 - whatever it is, the other pictures are still to be made
        return [Failed(f"{type(error).__name__}: {error}", again=True, sick=True)]


def _made(session: Session, model: Model, task: Task, result: Result) -> PictureMade:
    from h2gen.output.metadata import describe, fitting, origin, to_toml
    from h2gen.output.save import encode

    summary = None if result.trace is None else result.trace.summary
    whole = describe(
        result.settings,
        origin(session, model.content_hash),
        seconds=result.seconds,
        summary=summary,
        uncached=result.uncached,
        tiled=result.tiled,
        together=result.together,
        preset=task.preset,
        notes={"job": task.job, "source": task.source, **(json.loads(task.notes) if task.notes else {})},
    )
    metadata = fitting(whole, task.format) if task.metadata else None
    data = encode(result.image, task.format, metadata)
    sidecar = to_toml(whole) if task.sidecar else None
    described = metadata is not None or not task.metadata
    return PictureMade(data, sidecar, described, result.settings, result.seconds, summary, result.uncached)
