"""An actor of Ray: it holds the model on one slot of the cluster and makes the pictures that it is sent."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from h2gen._version import __version__
from h2gen.batches.messages import Broken, Failed, Message, Model, Ready, Task
from h2gen.batches.ray_files import Files, Placing
from h2gen.batches.worker import load_session, make_together, ready_message
from h2gen.errors import H2GenError, ModelError, RunError, UsageError
from h2gen.models.attention import check_attention
from h2gen.models.catalogue import Checkpoint
from h2gen.models.content_hash import content_hash
from h2gen.models.entries import bundled_folder
from h2gen.models.translate_errors import translated

if TYPE_CHECKING:
    from h2gen.generation.session import Session

CONTROL = "control"
"""The group of calls that are answered while a picture is made."""


class Outbox:
    """What ``make_together`` sends to, in place of a connection."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def send(self, message: Message) -> None:
        self.messages.put(message)


class ModelHolder:
    """Holds the model. One thread loads it and makes all pictures, as a worker process does; ``interrupt`` is answered
    meanwhile.

    Args:
        model: what to load; its checkpoint's paths are absolute.
        version: of h2gen where the batch was started; this machine must have the same.
    """

    def __init__(self, model: Model, version: str) -> None:
        self._model, self._version = model, version
        self._session: Session | None = None
        self._answer = Outbox()
        self._inbox: queue.SimpleQueue[tuple[Sequence[Task], Files, Outbox]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loaded: Ready | Broken | None = None
        self._placing = Placing()

    @ray.method(max_task_retries=2)
    def load(self) -> Ready | Broken:
        """Load the model; a second call gives the first one's answer."""
        return self._load()

    def _load(self) -> Ready | Broken:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        if self._loaded is None:
            answer = self._answer.messages.get()
            assert isinstance(answer, (Ready, Broken))
            self._loaded = answer
        return self._loaded

    @ray.method(max_task_retries=0)  # the queue counts attempts: a picture may be what ends the process
    def make(self, together: Sequence[Task], files: Files) -> Iterator[Message]:
        """Make pictures together; yields what a worker process would send."""
        if isinstance(loaded := self._load(), Broken):  # Ray has started this actor again since it was loaded
            raise loaded.error
        outbox = Outbox()  # of this call alone: what one that broke off has left is not taken for pictures of the next
        self._inbox.put((together, files, outbox))
        while (message := outbox.messages.get()) is not None:
            yield message

    @ray.method(concurrency_group=CONTROL, max_task_retries=0)
    def interrupt(self) -> None:
        """Stop after the current step."""
        if self._session is not None:
            self._session.interrupt()

    @ray.method(concurrency_group=CONTROL, max_task_retries=0)
    def clear(self) -> None:
        """Remove the files that came with tasks."""
        self._placing.clear()

    def _serve(self) -> None:
        try:
            model = replace(self._model, checkpoint=_on_this_machine(self._model.checkpoint))
            _check_same(model, self._version)
            check_attention(model.attention, model.options.device, model.options.dtype)
            self._session, issued = load_session(model)
        except Exception as error:  # noqa: BLE001 - whatever the error, other machines may have none
            known = error if isinstance(error, H2GenError) else RunError(f"{type(error).__name__}: {error}")
            known.args = (f"{_machine()}: {known}", *known.args[1:])
            self._answer.send(Broken(known))
            return
        self._answer.send(ready_message(self._session, issued))
        while True:
            together, files, outbox = self._inbox.get()
            try:
                tasks = [replace(task, settings=self._placing.placed(task.settings, files)) for task in together]
            except UsageError as error:
                outbox.send(Failed(f"{_machine()}: {error}", again=False))
            except Exception as error:  # noqa: BLE001 - a full disk, a reference whose bytes were lost
                outbox.send(Failed(f"{_machine()}: {type(error).__name__}: {error}", again=True, sick=True))
            else:
                for message in make_together(self._session, model, tasks, outbox):
                    outbox.send(message)
            outbox.messages.put(None)


def _on_this_machine(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is found here: h2gen's own, the hub's (downloaded if need be), or at the same path.

    Raises:
        ModelError: the path does not exist.
    """
    location = checkpoint.location
    if checkpoint.kind == "bundled":
        location = bundled_folder(checkpoint.name)
    paths = [part.path for part in checkpoint.parts]
    for path in paths if checkpoint.kind in ("bundled", "hub") else [Path(location), *paths]:
        if not path.exists():
            raise ModelError(f"there is no model at {str(path)!r}; copy it to the same path on every machine.")
    base = None if checkpoint.base is None else _on_this_machine(checkpoint.base)
    return replace(checkpoint, location=location, base=base)


def _check_same(model: Model, version: str) -> None:
    if version != __version__:
        raise ModelError(f"h2gen {__version__} is installed there, and {version} here; install the same version.")
    with translated(model.checkpoint):
        found = content_hash(model.checkpoint)
    if found != model.content_hash:
        raise ModelError(
            f"the model {model.checkpoint.name!r} there ({found[:12]}) is not the one here "
            f"({model.content_hash[:12]}); copy one over the other."
        )


def _machine() -> str:
    """Such as ``gpu-2 (10.0.0.3)``."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"  # type: ignore[no-untyped-call]
