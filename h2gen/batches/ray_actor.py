"""An actor of Ray: it holds the model on one slot of the cluster and makes the pictures that it is sent."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray

from h2gen._version import __version__
from h2gen.batches.messages import Broken, Failed, Message, Model, Ready, Task
from h2gen.batches.worker import load_session, make_together, ready_message
from h2gen.errors import H2GenError, ModelError, RunError, UsageError
from h2gen.files import partial_file
from h2gen.models.catalogue import Checkpoint
from h2gen.models.content_hash import content_hash
from h2gen.models.entries import bundled_folder
from h2gen.models.translate_errors import translated
from h2gen.settings.inputs import InputFile
from h2gen.settings.table import BY_NAME
from h2gen.settings.values import FILES

if TYPE_CHECKING:
    from h2gen.generation.session import Session

CONTROL = "control"
"""The group of calls that are answered while a picture is made."""
Files = Mapping[str, tuple[str, Any]]
"""Files that tasks need: by the hash of its contents, each one's suffix and a reference to its bytes."""


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
        self._folder = Path()

    @ray.method(max_task_retries=2)
    def load(self) -> Ready | Broken:
        """Load the model; a second call gives the first one's answer."""
        return self._load()

    def _load(self) -> Ready | Broken:
        if self._thread is None:
            self._folder = _own_folder()
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
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        try:
            model = replace(self._model, checkpoint=_on_this_machine(self._model.checkpoint))
            _check_same(model, self._version)
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
                tasks = [replace(task, settings=self._with_files(task.settings, files)) for task in together]
            except UsageError as error:
                outbox.send(Failed(f"{_machine()}: {error}", again=False))
            except Exception as error:  # noqa: BLE001 - a full disk, a reference whose bytes were lost
                outbox.send(Failed(f"{_machine()}: {type(error).__name__}: {error}", again=True, sick=True))
            else:
                for message in make_together(self._session, model, tasks, outbox):
                    outbox.send(message)
            outbox.messages.put(None)

    def _with_files(self, settings: Any, files: Files) -> Any:
        """The settings, with each file where it is on this machine, and with the contents that it had."""
        changed = {}
        for name in FILES:
            given: tuple[InputFile, ...] = getattr(settings, name)
            if given:
                changed[name] = tuple(self._placed(name, file, files) for file in given)
        return replace(settings, **changed) if changed else settings

    def _placed(self, name: str, file: InputFile, files: Files) -> InputFile:
        if file.sha256 in files:
            suffix, bytes_of = files[file.sha256]
            path = self._folder / f"{file.sha256}{suffix}"
            if not path.is_file():
                contents: Any = ray.get(bytes_of)
                with partial_file(contents, self._folder, durable=False) as partial:
                    os.replace(partial, path)
            file = replace(file, path=path)
        rule: Any = BY_NAME[name].rule
        try:
            same = rule.hashed(file.opened()) == file.sha256 if isinstance(file.path, Path) else True
        except OSError as error:
            raise UsageError(f"{file.name!r} cannot be read: {error.strerror or error}.") from error
        if not same:
            raise UsageError(f"{file.name!r} differs from the file where the batch was started.")
        return file


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


def _own_folder() -> Path:
    """A folder for files that came with tasks. Removes those of processes that were killed."""
    begin = "h2gen-ray-"
    for each in Path(tempfile.gettempdir()).glob(f"{begin}*"):
        process = each.name.removeprefix(begin).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(each, ignore_errors=True)  # neither a link nor another user's
    # Of a name that nobody else could have taken before, and only for this user.
    return Path(tempfile.mkdtemp(prefix=f"{begin}{os.getpid()}-"))
