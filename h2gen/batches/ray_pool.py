"""Workers in a Ray cluster, each an actor that holds the model. This is the side of the program that the user runs."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import Any, cast

import ray
from ray.exceptions import RayError

from h2gen._version import __version__
from h2gen.batches.messages import Broken, Message, Model, Ready, Task
from h2gen.batches.pool import Died, with_options
from h2gen.batches.ray_actor import CONTROL, ModelHolder
from h2gen.batches.ray_cluster import AUTO, RayOptions, Slots, find_slots, free_slots, has_room, joined
from h2gen.batches.ray_files import Shipping
from h2gen.batches.stop import Stop
from h2gen.errors import H2GenError, ModelError, RunError
from h2gen.models.catalogue import Checkpoint
from h2gen.wording import printable

_TICK = 0.2
"""Seconds after which a change of the stop level is noticed at the latest."""
_LOST = 60.0
"""Seconds that a cluster without room for any worker may take to get some back."""
_PATIENCE = 3.0
"""Seconds for the actors to remove their files."""
_DEATHS = 2
"""How often in a row an actor may die while it loads the model."""

_LOADER = "The process that loads the model"

_remote: Any = ray.remote  # its types do not know of concurrency groups
_Actor = _remote(max_restarts=-1, concurrency_groups={CONTROL: 1})(ModelHolder)


class RayWorker:
    """One actor, as the program sees it. Ray starts it again, if need be on another machine, when its own is lost."""

    def __init__(self, model: Model, slots: Slots, shipping: Shipping) -> None:
        self.model = model
        self.ready: Ready | None = None
        self.busy = False
        self.deaths = 0
        """While it was loading the model, in a row."""
        self._shipping = shipping
        self._actor = _Actor.options(num_cpus=slots.cores, num_gpus=slots.gpus, scheduling_strategy="SPREAD").remote(
            model, __version__
        )
        self.awaited: Any = None
        """The reference, or the stream of references, that its next message comes from; None if none is to come."""
        self.load()

    def load(self) -> None:
        """Load the model; ``read`` gives the answer."""
        self.ready, self.busy = None, False
        self.awaited = self._actor.load.remote()

    def give(self, together: Sequence[Task]) -> None:
        """Send it pictures to make in one batch. If it has died, ``read`` will find out."""
        self.busy = True
        files = self._shipping.files_of(task.settings for task in together)
        self.awaited = self._actor.make.options(num_returns="streaming").remote(together, files)

    def interrupt(self) -> None:
        """Make it stop after the current step, without finishing its pictures."""
        self._actor.interrupt.remote()

    def read(self) -> Message | None:
        """Its next message, which has come; None if that was all.

        Raises:
            Died: the actor is gone, or what it had sent was lost with its machine.
        """
        try:
            message = self._received()
        except StopIteration:
            self.awaited = None
            return None
        except RayError as error:
            if self.ready is None and (unfit := _unfit(error)) is not None:
                return Broken(unfit)
            self.deaths += self.ready is None
            raise Died("was lost") from error
        if isinstance(message, (Ready, Broken)):
            self.awaited = None
        if isinstance(message, Ready):
            self.ready, self.deaths = message, 0
        return message

    def _received(self) -> Message:
        return cast(Message, ray.get(self.awaited if self.ready is None else next(self.awaited)))

    def clear(self) -> Any:
        """Remove its files; the reference is there once that is done."""
        return self._actor.clear.remote()

    def end(self) -> None:
        """End the actor for good."""
        with contextlib.suppress(RayError):
            ray.kill(self._actor, no_restart=True)


class RayPool:
    """The workers of a run, in a cluster; see ``Pool``. Use as a context manager: at its end all actors have ended, and
    Ray too if the run started it.

    A machine that cannot load the model, or has another under its name, is left out with a notice; if none is left, its
    error ends the run.

    Args:
        model: what to load.
        options: where.
        most: workers at most.
        notice: is called with lines for the user.

    Raises:
        H2GenError: the cluster cannot be joined, or has no room; the model cannot be loaded (from ``messages``).
    """

    def __init__(self, model: Model, options: RayOptions, most: int, notice: Callable[[str], None]) -> None:
        self._model = replace(model, checkpoint=_absolute(model.checkpoint))
        self._options, self._most, self._notice = options, most, notice
        self._stack = contextlib.ExitStack()
        self._shipping = Shipping()
        self._refused: set[str] = set()
        self._lost_since: float | None = None
        self.workers: list[RayWorker] = []

    def __enter__(self) -> RayPool:
        if self._options.address == AUTO and not ray.is_initialized():
            self._notice("Starting Ray ...")
        with contextlib.ExitStack() as stack:
            stack.enter_context(joined(self._options))
            device = self._model.options.device
            self._slots = find_slots(self._options, device)
            if device == "cpu":
                self._model = replace(self._model, threads=self._slots.cores)
            count = min(self._slots.count, self._most)
            free = free_slots(self._slots)
            if free < count:
                self._notice(
                    f"{free} of {count} slots of the Ray cluster are free; h2gen will use the others when they are."
                )
            self.workers = [self._start(self._model) for _ in range(count)]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if self._shipping.is_used:
                with contextlib.suppress(RayError):
                    cleared = [worker.clear() for worker in self.workers if worker.ready is not None]
                    ray.wait(cleared, num_returns=len(cleared), timeout=_PATIENCE) if cleared else None
            for worker in self.workers:
                worker.end()

    def idle(self) -> list[RayWorker]:
        """The workers that are waiting for a task."""
        return [worker for worker in self.workers if worker.ready is not None and not worker.busy]

    def messages(self, stop: Stop) -> Iterator[tuple[RayWorker, Message | Died]]:
        """Wait briefly for messages and yield them; yields nothing if ``stop`` changed its level meanwhile."""
        if wait([stop.wake_up], 0):
            stop.acknowledge()
            return
        waiting = [worker for worker in self.workers if worker.awaited is not None]
        if not waiting:
            time.sleep(_TICK)
            return
        done, _ = ray.wait([worker.awaited for worker in waiting], num_returns=1, timeout=_TICK)
        if not done:
            self._check_room()
        for worker in waiting:
            if any(worker.awaited is each for each in done):
                yield from self._read(worker)

    def replace(self, worker: RayWorker, offload: str | None = None) -> None:
        """Start a new actor in place of one; ``offload`` changes the offloading of the new one and its successors."""
        worker.end()
        model = worker.model if offload is None else with_options(worker.model, offload=offload)
        self.workers[self.workers.index(worker)] = self._start(model)

    def _start(self, model: Model) -> RayWorker:
        return RayWorker(model, self._slots, self._shipping)

    def _read(self, worker: RayWorker) -> Iterator[tuple[RayWorker, Message | Died]]:
        try:
            message = worker.read()
        except Died as death:
            if self._options.verbose:
                self._notice(f"Ray: {printable(str(death.__cause__))}")
            if worker.deaths < _DEATHS:
                worker.load()  # Ray starts the actor again
                yield worker, death
                return
            message = Broken(RunError(f"{_LOADER} {death}; there may not be enough memory for it."))
        if isinstance(message, Broken):
            self._refuse(worker, message)
        if message is not None:
            yield worker, message

    def _refuse(self, worker: RayWorker, broken: Broken) -> None:
        """Continue without a worker that cannot load the model, unless it is the last."""
        worker.end()
        worker.ready = worker.awaited = None
        if all(each is worker or (each.awaited is None and each.ready is None) for each in self.workers):
            raise broken.error
        if (text := str(broken.error)) not in self._refused:
            self._refused.add(text)
            self._notice(f"Left out {text.replace(_LOADER, 'a worker: the process that loads the model')}")

    def _check_room(self) -> None:
        """End the run if no machine is left that could hold a worker."""
        if any(worker.ready is not None for worker in self.workers) or has_room(self._slots):
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = time.monotonic()
        elif time.monotonic() - self._lost_since > _LOST:
            raise RunError("The Ray cluster has lost every machine that could hold the model.")


def _absolute(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with absolute paths, for processes that run in other folders."""
    own = checkpoint.kind in ("bundled", "hub")
    return replace(
        checkpoint,
        location=checkpoint.location if own else Path(checkpoint.location).absolute(),
        base=None if checkpoint.base is None else _absolute(checkpoint.base),
        parts=tuple(replace(part, path=part.path.absolute()) for part in checkpoint.parts),
    )


def _unfit(error: Exception) -> H2GenError | None:
    """The error if an actor could not even be started, so that starting it again would not help."""
    text = str(error)
    if not (getattr(error, "actor_init_failed", False) or "failed to import on the worker" in text):
        return None
    machine = re.search(r"\bip=([\w.:]+)", text)
    return ModelError(
        f"{machine[1] if machine else 'a machine'}: h2gen could not be started there ({_last_line(error)}); install "
        f"h2gen[ray] {__version__} on every machine."
    )


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return shorten(printable(lines[-1]), 200, placeholder=" ...") if lines else type(error).__name__
