"""Worker processes, one per device: each holds the model and makes what it is sent. This is the main process's side."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from h2gen.batches.messages import Broken, Message, Model, Ready, Task
from h2gen.batches.stop import Stop
from h2gen.batches.worker import serve
from h2gen.errors import RunError
from h2gen.generation.interrupt import interrupts_blocked

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_PATIENCE = 10.0
"""Seconds for a worker to end by itself before it is killed."""


class Died(Exception):
    """A worker's process ended unexpectedly."""


class AnyWorker(Protocol):
    """A worker, as the queue uses it: one of this machine, or of a cluster."""

    model: Model
    ready: Ready | None
    busy: bool

    def give(self, together: Sequence[Task]) -> None: ...
    def interrupt(self) -> None: ...


W = TypeVar("W", bound=AnyWorker)


class AnyPool(Protocol[W]):
    """The workers of a run, as the queue uses them."""

    workers: list[W]

    def idle(self) -> list[W]: ...
    def messages(self, stop: Stop) -> Iterator[tuple[W, Message | Died]]: ...
    def replace(self, worker: W, offload: str | None = None) -> None: ...


class Worker:
    """One worker, as the main process sees it."""

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
        """Send it pictures to make in one batch. If it has died, ``read`` will find out."""
        self.busy = True
        self._send(together)

    def interrupt(self) -> None:
        """Make it stop after the current step, without finishing its pictures."""
        self._send(None)

    def read(self) -> Message:
        """Its next message.

        Raises:
            Died: its process has ended.
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
        """Close the connection and wait for the process to end."""
        self.connection.close()
        self._process.join(patience)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def _send(self, message: Sequence[Task] | None) -> None:
        with contextlib.suppress(OSError):  # it has died, and ``read`` will find out
            self.connection.send(message)


class Pool:
    """The workers of a run. Use as a context manager: at its end all processes have ended.

    Raises:
        H2GenError: the model cannot be loaded (from ``messages``).
    """

    def __init__(self, model: Model, devices: Sequence[str]) -> None:
        self._models = [with_options(model, device=device) for device in devices]
        self._deaths_while_loading = 0
        self.workers: list[Worker] = []

    def __enter__(self) -> Pool:
        self.workers = [Worker(model) for model in self._models]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.connection.close()  # all of them first, so that they end in parallel
        for worker in self.workers:
            # One that is still loading does not notice that the connection is closed.
            worker.end(0 if kind is not None or worker.ready is None else _PATIENCE)

    def idle(self) -> list[Worker]:
        """The workers that are waiting for a task."""
        return [worker for worker in self.workers if worker.ready is not None and not worker.busy]

    def messages(self, stop: Stop) -> Iterator[tuple[Worker, Message | Died]]:
        """Wait for messages and yield them; yields nothing if ``stop`` changed its level meanwhile."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for ready in wait([*by_connection, stop.wake_up]):
            if ready is stop.wake_up:
                stop.acknowledge()
                continue
            worker = by_connection[cast(Connection, ready)]
            try:
                message = worker.read()
            except Died as death:
                yield worker, self._replace_dead(worker, death)
                continue
            if isinstance(message, Broken):
                raise message.error
            if isinstance(message, Ready):
                self._deaths_while_loading = 0
            yield worker, message

    def replace(self, worker: Worker, offload: str | None = None) -> None:
        """Start a new worker in place of one that has ended or is about to end; ``offload`` changes the offloading of
        the new one and its successors."""
        worker.end()
        model = worker.model if offload is None else with_options(worker.model, offload=offload)
        self.workers[self.workers.index(worker)] = Worker(model)

    def _replace_dead(self, worker: Worker, death: Died) -> Died:
        """Start a new worker in place of a dead one, unless every worker dies while it loads the model."""
        if worker.ready is None:
            self._deaths_while_loading += 1
            if self._deaths_while_loading > len(self._models):
                raise RunError(f"The process that loads the model {death}; there may not be enough memory for it.")
        self.replace(worker)
        return death


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by signal {-exitcode}"
    return f"ended with status {exitcode}"


def with_options(model: Model, **changes: Any) -> Model:
    """The model, loaded with some options changed."""
    return replace(model, options=replace(model.options, **changes))
