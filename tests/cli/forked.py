"""The program in a process of its own, forked from one that has imported torch and diffusers: a start takes no time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import context
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, TextIO

if os.name == "posix":
    import fcntl
    import termios


class Forked:
    """Like ``subprocess.Popen``, for ``h2gen``, with the current environment.

    Args:
        arguments: of the program.
        stdout: a file descriptor; a pipe unless given.
        stderr: the same.
        terminal: a file descriptor of the terminal that is to be its stdin, its stdout and its own.
        folder: to run in; the current one unless given.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        stdout: int | None = None,
        stderr: int | None = None,
        terminal: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.stdout: TextIO | None = None
        self.stderr: TextIO | None = None
        nothing = os.open(os.devnull, os.O_RDONLY)
        mine = [nothing]
        if terminal is not None:
            stdout = terminal
        if stdout is None:
            self.stdout, stdout = _pipe()
            mine.append(stdout)
        if stderr is None:
            self.stderr, stderr = _pipe()
            mine.append(stderr)
        self._workers: list[int] = []
        self._told, tell = os.pipe()
        os.set_blocking(self._told, False)
        mine.append(tell)
        streams = [_Descriptor(each) for each in (nothing if terminal is None else terminal, stdout, stderr, tell)]
        given = (tuple(arguments), dict(os.environ), str(folder or Path.cwd()), streams, terminal is not None)
        self._process = multiprocessing.get_context("forkserver").Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        for each in mine:
            os.close(each)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def workers(self) -> list[int]:
        """The ids of the processes that it has started."""
        with suppress(BlockingIOError):
            self._workers += map(int, os.read(self._told, 4096).split())
        return self._workers

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("h2gen", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended, and its status is still on the way
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end and return what it wrote to its pipes; it is killed after ``timeout`` seconds."""
        killer = threading.Timer(timeout, self.kill)
        killer.start()
        try:
            with ThreadPoolExecutor(2) as pool:
                out, err = pool.map(lambda file: file.read() if file else "", (self.stdout, self.stderr))
            self.wait()
        finally:
            killer.cancel()
        return out, err

    def close(self) -> None:
        """Kill it, if it still runs."""
        self.kill()
        self.wait()
        os.close(self._told)
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()


class _Descriptor:
    """A file descriptor that goes to another process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        return DupFd(self.number)

    def __setstate__(self, sent: Any) -> None:
        self.number = sent.detach()


class _Worker(getattr(context, "ForkServerProcess", multiprocessing.Process)):
    """A process that the program starts: also forked, and it writes to the program's output."""

    tell = -1
    """The file descriptor to which it writes its id."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._streams = [_Descriptor(1), _Descriptor(2)]

    def start(self) -> None:
        super().start()
        os.write(self.tell, b"%d\n" % self.pid)

    def run(self) -> None:
        for number, stream in enumerate(self._streams, 1):
            os.dup2(stream.number, number)
            os.close(stream.number)
        super().run()


def _fork_workers() -> None:
    """Let workers be forked from the server that this process is from."""
    from multiprocessing.forkserver import _forkserver

    _forkserver.ensure_running = lambda: None  # its address is known
    get_context = multiprocessing.get_context
    forked: Any = get_context("forkserver")
    forked.Process = _Worker
    multiprocessing.get_context = lambda method=None: forked if method == "spawn" else get_context(method)


def _pipe() -> tuple[TextIO, int]:
    reading, writing = os.pipe()
    return open(reading, encoding="utf-8"), writing


def _run(
    arguments: Sequence[str], environ: dict[str, str], folder: str, streams: Sequence[_Descriptor], terminal: bool
) -> None:
    """What ``python -m h2gen`` does."""
    *streams, tell = streams
    _Worker.tell = tell.number
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
        os.close(stream.number)
    _fork_workers()
    if terminal:  # Ctrl-C comes from it, and is heeded even if the tests were started so that they ignore it
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = ["h2gen", *arguments]

    from h2gen.cli import main

    main()
