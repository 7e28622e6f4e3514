"""One picture on several devices: this process makes it together with others, each of which holds the whole model.

The session in this process is the first of them: it owns the terminal, the files and the trace. The others, its
companions, are sessions too. They are told which pictures to make, and after each step whether to go on. That message
goes from host to host; what the devices exchange is up to diffusers' context parallel and to ``h2gen.cache.agree``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist

from h2gen.cache import StepRecord, Trace
from h2gen.errors import DeviceError, H2GenError, RunError
from h2gen.generation.interrupt import interrupts_blocked, unblock_interrupts
from h2gen.generation.quiet import be_quiet, quiet_torch
from h2gen.generation.relief import load_or_advise
from h2gen.generation.session import Session, StepObserver
from h2gen.models import Checkpoint, is_out_of_memory
from h2gen.models.devices import choose_device, devices
from h2gen.models.footprint import Work
from h2gen.models.load_options import LoadOptions
from h2gen.models.parallel import split_tokens
from h2gen.settings.devices import check_picture
from h2gen.settings.values import Settings

_PATIENCE = 5.0
"""Seconds for a process to end by itself, or for its end to become known."""
_LONGEST = timedelta(minutes=10)
"""How long a process waits for the others at most, if none of them has ended."""


class Place(NamedTuple):
    """Where one of the processes computes, and how it meets the others.

    Args:
        rank: of the process, from 0.
        devices: of all of them.
        port: of the first one's store on this machine.
        threads: that it computes with, on the CPU.
    """

    rank: int
    devices: tuple[str, ...]
    port: int
    threads: int

    @property
    def device(self) -> str:
        return self.devices[self.rank]


class Making(NamedTuple):
    """What a companion is to make: the pictures of one batch."""

    together: Sequence[Settings]
    tiled: bool


def open_together(
    checkpoint: Checkpoint,
    options: LoadOptions,
    work: Work | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Session:
    """Load a checkpoint in one process per device, as many as the options say; see ``open_session``.

    Raises:
        DeviceError: there are fewer devices, or the model's tokens cannot be split among them.
        RunError: one of the processes has ended, or this one belongs to a group already.
    """
    if dist.is_initialized():
        raise RunError(
            "This process already belongs to a torch.distributed group, so it cannot start others; load the model "
            "without devices, and call enable_parallelism on its transformer."
        )
    names = _devices(options)
    quiet_torch()
    server = dist.TCPStore("127.0.0.1", 0, len(names), is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    threads = max(1, torch.get_num_threads() // len(names))
    places = [Place(rank, names, server.port, threads) for rank in range(len(names))]
    options = replace(options, offload="none")
    companions = Companions(checkpoint, options, work, places[1:], server)
    del server  # it is closed together with them
    try:
        session = FirstSession(*_loaded(checkpoint, options, work, say, places[0]), companions)
        companions.wait_until_loaded()
        companions.meet(lambda: _meet(session, places[0]))
    except BaseException:
        companions.end()
        raise
    weakref.finalize(session, companions.end)
    return session


def _devices(options: LoadOptions) -> tuple[str, ...]:
    """The devices by name."""
    kind, count = choose_device(options.device).type, options.devices
    if kind == "cpu":
        return ("cpu",) * count
    here = devices().get("cuda", 0)
    if kind != "cuda" or here < count:
        raise DeviceError(
            f"--devices {count} needs {count} CUDA devices, but this machine has {here}; use --devices {max(here, 1)}."
        )
    return tuple(f"cuda:{index}" for index in range(count))


def _loaded(
    checkpoint: Checkpoint, options: LoadOptions, work: Work | None, say: Callable[[str], None], place: Place
) -> tuple[Any, Checkpoint, LoadOptions]:
    if place.device == "cpu":
        torch.set_num_threads(place.threads)
    else:
        torch.cuda.set_device(place.device)
    pipe, used = load_or_advise(checkpoint, replace(options, device=place.device), work, say)
    return pipe, checkpoint, used


def _meet(session: Session, place: Place) -> None:
    """Join the group of all processes, once each of them has loaded the model, and split the tokens."""
    backend = "gloo" if place.device == "cpu" else "cpu:gloo,cuda:nccl"
    count = len(place.devices)
    store = dist.TCPStore("127.0.0.1", place.port, count, is_master=False)  # type: ignore[attr-defined]
    # A group is found by how many were begun before. A meeting that failed counts in this process only.
    dist.distributed_c10d._world.group_count = 0
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=count, timeout=_LONGEST)
    split_tokens(session.pipe.transformer, count)


class FirstSession(Session):
    """The session of the process that the others follow."""

    def __init__(self, pipe: Any, checkpoint: Checkpoint, options: LoadOptions, companions: Companions) -> None:
        super().__init__(pipe, checkpoint, options)
        self._companions = companions

    def _denoise(self, together: Sequence[Settings], on_step: StepObserver | None, tiled: bool) -> Any:
        check_picture(self.options, together[0], self.checkpoint)
        # With an observer, which is asked after each step whether to go on.
        with self._lock, self._companions.making(Making(together, tiled), self.device):
            pixels, trace, seconds = super()._denoise(together, on_step or _unobserved, tiled)
        observed = on_step is not None or together[0].cache.enabled
        return pixels, trace if observed else Trace(), seconds

    def _raise_if_interrupted(self) -> None:
        self._companions.tell(stop=self._interrupted)
        super()._raise_if_interrupted()

    def relieve(self, offload: str) -> None:
        raise RunError("A model on several devices is not loaded again after memory ran out.")


def _unobserved(_record: StepRecord) -> None:
    """Takes each step's record."""


class Companions:
    """The other processes, as the first one sees them. They end with it.

    Args:
        checkpoint, options, work: what each of them loads.
        places: where they compute.
        server: of the store by which all meet.
    """

    def __init__(
        self, checkpoint: Checkpoint, options: LoadOptions, work: Work | None, places: Sequence[Place], server: Any
    ) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._places, self._connections, self._processes, self._server = places, [], [], server
        self._making = self._stopping = self._ended = False
        self._why: H2GenError | None = None
        with interrupts_blocked():
            for place in places:
                near, far = context.Pipe()
                given = (far, checkpoint, options, work, place)
                process = context.Process(target=accompany, args=given, daemon=True, name="h2gen-companion")
                process.start()
                far.close()
                self._connections.append(near)
                self._processes.append(process)
        threading.Thread(target=self._watch, daemon=True).start()

    def wait_until_loaded(self) -> None:
        """Wait until each has loaded the model.

        Raises:
            H2GenError: one of them cannot, or has ended.
        """
        loading = [*self._connections]
        while loading:
            for connection in cast("list[Connection]", wait(loading)):
                loading.remove(connection)
                with contextlib.suppress(OSError, EOFError):
                    if (failure := connection.recv()) is None:
                        continue
                    self._why = failure
                raise self._reason()

    def meet(self, join: Callable[[], None]) -> None:
        """Call ``join``, which waits until all have met, in a thread: it would also wait for a process that has ended.

        Raises:
            H2GenError: one of them has ended, or they cannot work together.
        """
        errors: list[BaseException] = []
        near, far = multiprocessing.Pipe()

        def run() -> None:
            try:
                join()
            except BaseException as error:  # noqa: BLE001 - raised in the other thread
                errors.append(error)
            finally:
                far.close()

        threading.Thread(target=run, daemon=True).start()
        ended = wait([near, *(process.sentinel for process in self._processes)])
        if near not in ended or (errors and self._lost()):
            raise self._reason() from (errors[0] if errors else None)
        if errors:
            raise _failure(0, self._places[0].devices, errors[0])

    @contextlib.contextmanager
    def making(self, what: Making, device: torch.device) -> Iterator[None]:
        """Around making pictures together. An error in one of the processes ends the others.

        Raises:
            RunError: another process has failed or ended, or memory ran out in this one.
        """
        if self._ended:
            raise RunError("One of the processes that made pictures together has failed; load the model again.")
        self._making, self._stopping = True, False
        self._send(what)
        try:
            yield
            failed = False
        except KeyboardInterrupt:
            failed = not self._stopping  # otherwise all have stopped after the same step
            raise
        except BaseException as error:
            failed = True
            if isinstance(error, Exception) and is_out_of_memory(error):
                raise RunError(f"Out of memory on {device}; use more --devices, or a smaller --size.") from error
            if self._lost() or self._why is not None:
                raise self._reason() from error
            raise
        finally:
            self._making = False
            if failed:
                self.end()

    def tell(self, *, stop: bool) -> None:
        """Say that all go on with the next step, or stop."""
        if self._making:
            self._stopping = self._stopping or stop
            self._send(not stop)

    def end(self) -> None:
        """End them all, and leave their group."""
        if self._ended:
            return
        self._ended = True
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()  # it may be waiting for this process in the middle of a step
            process.join(_PATIENCE)
        if dist.is_initialized():
            if self._places[0].device == "cpu":
                dist.destroy_process_group()
            else:  # the others do not leave it in an orderly way
                dist.distributed_c10d._abort_process_group()
        self._server = None  # closes it, which wakes a process that still waits there

    def _send(self, message: Any) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has ended, as the next exchange of tokens will show
                connection.send(message)

    def _watch(self) -> None:
        """Once one of them has ended while this process waits for it on a GPU, end the waiting."""
        wait([process.sentinel for process in self._processes])
        if not self._ended and self._making and dist.is_initialized() and self._places[0].device != "cpu":
            dist.distributed_c10d._abort_process_group()

    def _lost(self) -> bool:
        """Whether one has ended. What the connection to it says is often known a little earlier than its end."""
        ended = wait([process.sentinel for process in self._processes], _PATIENCE)
        for process in self._processes:
            if process.sentinel in ended:
                process.join(_PATIENCE)  # its exit code is known a little later
        return bool(ended)

    def _reason(self) -> H2GenError:
        """Why one has failed, in its own words if it had any left."""
        self._lost()
        for place, process in zip(self._places, self._processes, strict=True):
            if process.exitcode:  # and not 0: it has not said why
                how = f"was killed by signal {-process.exitcode}" if process.exitcode < 0 else "ended unexpectedly"
                return RunError(
                    f"Process {place.rank + 1} of {len(place.devices)}, on {place.device}, {how}, perhaps "
                    "because memory ran out; the picture cannot be finished."
                )
        for connection in self._connections:
            with contextlib.suppress(OSError, EOFError):
                while self._why is None and connection.poll():
                    self._why = connection.recv()
        return self._why or RunError("The processes that make the picture have lost their connection; try again.")


class FollowingSession(Session):
    """The session of a companion."""

    def __init__(self, pipe: Any, checkpoint: Checkpoint, options: LoadOptions, connection: Connection) -> None:
        super().__init__(pipe, checkpoint, options)
        self._connection = connection

    def _raise_if_interrupted(self) -> None:
        if sys.exc_info()[1] is not None:  # memory ran out; the first process does not wait for this one's question
            return
        if not self._connection.recv():
            raise KeyboardInterrupt

    def follow(self) -> None:
        """Make what the first process makes, until that ends."""
        while True:
            made: Making = self._connection.recv()
            with contextlib.suppress(KeyboardInterrupt):
                self._denoise(made.together, _unobserved, made.tiled)


def accompany(
    connection: Connection, checkpoint: Checkpoint, options: LoadOptions, work: Work | None, place: Place
) -> None:
    """The main function of a companion's process.

    Ctrl-C in a terminal reaches every process; this one ignores it, and the first one says what it means. SIGTERM is
    how Python ends the processes that are left when it exits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    unblock_interrupts()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    be_quiet()
    quiet_torch()
    try:
        loaded = _loaded(checkpoint, options, work, lambda _line: None, place)
        session = FollowingSession(*loaded, connection)
        connection.send(None)
        _meet(session, place)
        session.follow()
    except (EOFError, OSError):
        pass  # the first process has ended, or does not need this one any more
    except Exception as error:  # noqa: BLE001 - the first process says it in one line
        with contextlib.suppress(OSError):
            connection.send(_failure(place.rank, place.devices, error))
    finally:
        os._exit(0)  # without the libraries' complaints about a group that others have left


def _failure(rank: int, devices: Sequence[str], error: BaseException) -> H2GenError:
    """What a process failed with, in one line."""
    if isinstance(error, H2GenError):
        return error
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return RunError(f"Process {rank + 1} of {len(devices)}, on {devices[rank]}, failed: {said}")


def _end_with_parent() -> None:
    """Wait for the first process to end, and end this one, even if it waits for the other in the middle of a step."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
