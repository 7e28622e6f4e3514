"""A worker process: it holds the model on one device and makes the pictures it is sent."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from h2gen.batches.messages import Broken, Failed, Message, Model, PictureMade, Ready, Stepped, Stopped, Task
from h2gen.errors import H2GenError, OutOfMemory, UsageError
from h2gen.generation.interrupt import unblock_interrupts
from h2gen.generation.quiet import be_quiet

if TYPE_CHECKING:
    from h2gen.cache.trace import StepRecord
    from h2gen.generation.result import Result
    from h2gen.generation.session import Session


class Sender(Protocol):
    """Where messages go: a connection, or what stands in for one."""

    def send(self, message: Any, /) -> None: ...


def serve(connection: Connection, model: Model) -> None:
    """The process's main function: load the model, then make what is sent until the connection closes.

    Ctrl-C in a terminal reaches every process; this one ignores it, and the main process decides what it means.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    unblock_interrupts()
    try:
        session, issued = load_session(model)
    except H2GenError as error:
        connection.send(Broken(error))
        return
    tasks: queue.SimpleQueue[Sequence[Task] | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(connection, session, tasks, busy), daemon=True).start()
    with contextlib.suppress(OSError):
        connection.send(ready_message(session, issued))
        while (together := tasks.get()) is not None:
            busy.set()
            answers = make_together(session, model, together, connection)
            busy.clear()
            for message in answers:
                connection.send(message)
                if isinstance(message, Failed) and message.sick:
                    return


def load_session(model: Model) -> tuple[Session, tuple[str, ...]]:
    """The model, and what the user should know about loading it."""
    said: list[str] = []
    be_quiet()
    from h2gen.generation.session import open_session

    if model.threads is not None:
        import torch

        torch.set_num_threads(min(model.threads, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer
    with warnings.catch_warnings(record=True, action="always", category=RuntimeWarning) as issued:
        session = open_session(model.checkpoint, model.options, model.work, said.append)
    return session, (*said, *(str(warning.message) for warning in issued))


def ready_message(session: Session, issued: tuple[str, ...]) -> Ready:
    from h2gen.models.memory import refused_by

    dtype = str(session.dtype).removeprefix("torch.")
    return Ready(str(session.device), dtype, session.offload, issued, frozenset(refused_by(session.pipe)))


def _listen(
    connection: Connection, session: Session, tasks: queue.SimpleQueue[Sequence[Task] | None], busy: threading.Event
) -> None:
    """Receive messages while a picture is made: None stops it, and a closed connection ends the process."""
    try:
        while True:
            task = connection.recv()
            if task is None:
                session.interrupt()
            else:
                tasks.put(task)
    except (EOFError, OSError):
        if busy.is_set():
            os._exit(1)  # in the middle of a step: the main process is gone
        tasks.put(None)


def make_together(session: Session, model: Model, together: Sequence[Task], connection: Sender) -> Sequence[Message]:
    """One message per picture, in their order; if one failed, a last one for all that were not finished before."""
    made: list[Message] = []

    def on_step(record: StepRecord) -> None:
        connection.send(Stepped(record))

    def on_result(result: Result) -> None:
        made.append(_made(model, together[len(made)], result))

    try:
        session.run_together(
            [task.settings for task in together],
            on_step=on_step if together[0].steps else None,
            tiled=together[0].tiled,
            on_result=on_result,
        )
        return made
    except KeyboardInterrupt:
        return [*made, Stopped()]
    except OutOfMemory as error:  # only ending the process gives all memory back
        return [*made, Failed(str(error), again=True, exhausted=True, sick=True)]
    except UsageError as error:
        return [*made, Failed(str(error), again=False)]
    except H2GenError as error:
        return [*made, Failed(str(error), again=True)]
    except Exception as error:  # noqa: BLE001 - whatever the error, the other pictures can still be made
        return [*made, Failed(f"{type(error).__name__}: {error}", again=True, sick=True)]


def _made(model: Model, task: Task, result: Result) -> PictureMade:
    from h2gen.generation.advice import advice, tuned_thresholds
    from h2gen.output.picture_file import picture_file

    tuned = partial(tuned_thresholds, result.settings, result.origin.changing, lambda: model.content_hash)
    file = picture_file(
        replace(result, preset=task.preset),
        replace(result.origin, content_hash=model.content_hash),
        task.format,
        notes={"job": task.job, "source": task.source, **(json.loads(task.notes) if task.notes else {})},
        metadata=task.metadata,
        sidecar=task.sidecar,
    )
    return PictureMade(
        file.data,
        file.sidecar,
        file.described,
        file.metadata,
        result.settings,
        result.seconds,
        result.summary,
        result.nan_with_cache,
        result.unread,
        None if result.summary is None else advice(result.trace, result.settings.cache, tuned),
    )
