"""Runs the program piped, in its own process, or in a terminal, and waits for it."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any
from unittest.mock import patch

import pytest

from h2gen.cli.app import run

if os.name == "posix":
    import fcntl
    import pty
    import termios


def h2gen(*arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
    """The program as it behaves in a pipe, inside this process: a new one takes seconds to import torch."""
    stdin = io.TextIOWrapper(io.BytesIO(input.encode()), "utf-8")
    with io.StringIO() as out, io.StringIO() as err:
        with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "stdin", stdin):
            status = run(list(arguments))
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def piped(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The program in its own process, piped."""
    return subprocess.run([sys.executable, "-m", "h2gen", *arguments], capture_output=True, text=True, **more)


@contextmanager
def started(*arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """The program, piped; killed at the end if it still runs. Skips the test where signals differ from POSIX's."""
    needs_posix()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    with subprocess.Popen([sys.executable, "-m", "h2gen", *arguments], text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def in_a_terminal(*arguments: str, whole: bool = False) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The program with its stderr (or all of it) in a terminal of 80 by 24, and the terminal's other end."""
    needs_posix()
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "h2gen", *arguments],
        stdin=theirs if whole else None,
        stdout=theirs if whole else subprocess.PIPE,
        stderr=theirs,
        start_new_session=whole,
        preexec_fn=(lambda: _take(theirs)) if whole else None,
        text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    ) as process:
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def _take(terminal: int) -> None:
    """Let Ctrl-C come from a terminal, and heed it even if the tests were started so that they ignore it."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def read_until(descriptor: int, words: str | None = None, seconds: float = 120) -> str:
    """What the terminal shows until a regular expression matches, or to its end.

    What has been read is gone: of words that follow one another closely, ask for all at once. Fails if they do not come
    in time.
    """
    seen = b""
    end = time.monotonic() + seconds
    while words is None or not re.search(words, seen.decode(errors="replace"), re.DOTALL):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        try:
            chunk = os.read(descriptor, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        assert chunk or words is None, f"{words!r} never came after {seen.decode(errors='replace')!r}"
        if not chunk:
            break
        seen += chunk
    return seen.decode(errors="replace")


def press_until(descriptor: int, keys: bytes, words: str, tries: int = 20) -> str:
    """As ``read_until``, after keys that may be missed, and are then pressed again."""
    for _ in range(tries - 1):
        os.write(descriptor, keys)
        with suppress(AssertionError):
            return read_until(descriptor, words, seconds=3)
    os.write(descriptor, keys)
    return read_until(descriptor, words, seconds=3)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """The condition's value once it is true; fails if that takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def needs_posix() -> None:
    if os.name != "posix":
        pytest.skip("needs POSIX")


def children(pid: int) -> list[int]:
    """The running child processes of a process, from Linux's /proc; skips the test on other systems."""
    if not os.path.exists("/proc/self/stat"):
        pytest.skip("needs Linux")
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    state, parent = file.read().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue
            if int(parent) == pid and state != "Z":
                found.append(int(entry))
    return found


def alive(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
