"""Worker processes, one a device: each holds the model and makes what it is given."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TYPE_CHECKING, cast

from h2gen.batches.stop import Stop
from h2gen.batches.worker import Broken, Message, Model, Ready, Task, interrupts_blocked, serve
from h2gen.errors import RunError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_PATIENCE = 10.0
"""Seconds for a worker to end by itself before it is killed."""


class Died(Exception):
    """A worker's process ended without being asked to."""


class Worker:
    """The near end of one worker."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.ready: Ready | None = None
        self.busy = False
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, far = context.Pipe()
        self._process: BaseProcess = context.Process(target=serve, args=(far, model), daemon=True, name="h2gen-worker")
        with interrupts_blocked():
            self._process.start()
        far.close()

    def give(self, together: Sequence[Task]) -> None:
        """Have it make pictures that go together. Its death is found when its answer is read."""
        self.busy = True
        self._send(together)

    def interrupt(self) -> None:
        """Have it give up what is in hand after the step in hand."""
        self._send(None)

    def read(self) -> Message:
        """What it says next.

        Raises:
            Died: nothing any more.
        """
        try:
            message = cast(Message, self.connection.recv())
        except (EOFError, OSError) as error:
            self._process.join(_PATIENCE)
            raise Died(_cause(self._process.exitcode)) from error
        if isinstance(message, Ready):
            self.ready = message
        return message

    def end(self, patience: float = _PATIENCE) -> None:
        """Hang up, and wait until it is gone."""
        self.connection.close()
        self._process.join(patience)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def _send(self, message: Sequence[Task] | None) -> None:
        with contextlib.suppress(OSError):  # it is dead, and ``read`` will say so
            self.connection.send(message)


class Pool:
    """The workers of a run. Use as a context manager: at its end all of them are gone.

    Raises:
        H2GenError: the model cannot be loaded (from ``messages``).
    """

    def __init__(self, model: Model, devices: Sequence[str]) -> None:
        self._models = [replace(model, device=device) for device in devices]
        self._deaths_while_loading = 0
        self.workers: list[Worker] = []

    def __enter__(self) -> Pool:
        self.workers = [Worker(model) for model in self._models]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.connection.close()  # all first, so that they end side by side
        for worker in self.workers:
            # One that loads does not hear that the line is dead.
            worker.end(0 if kind is not None or worker.ready is None else _PATIENCE)

    def idle(self) -> list[Worker]:
        """The workers that wait for a task."""
        return [worker for worker in self.workers if worker.ready is not None and not worker.busy]

    def messages(self, stop: Stop) -> Iterator[tuple[Worker, Message | Died]]:
        """Wait until somebody has something to say, and yield it; nothing where ``stop`` changed its level."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for ready in wait([*by_connection, stop.bell]):
            if ready is stop.bell:
                stop.acknowledge()
                continue
            worker = by_connection[cast(Connection, ready)]
            try:
                message = worker.read()
            except Died as death:
                yield worker, self._bury(worker, death)
                continue
            if isinstance(message, Broken):
                raise message.error
            yield worker, message

    def replace(self, worker: Worker, offload: str | None = None) -> None:
        """Put a new worker in the place of one that has ended, or is about to; ``offload`` is for it and those after
        it."""
        worker.end()
        model = worker.model if offload is None else replace(worker.model, offload=offload)
        self.workers[self.workers.index(worker)] = Worker(model)

    def _bury(self, worker: Worker, death: Died) -> Died:
        """Put a new worker in a dead one's place, unless the model kills whoever loads it."""
        if worker.ready is None:
            self._deaths_while_loading += 1
            if self._deaths_while_loading > len(self._models):
                raise RunError(f"The process that loads the model {death}; is there memory enough for it?")
        self.replace(worker)
        return death


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by signal {-exitcode}"
    return f"ended with status {exitcode}"
