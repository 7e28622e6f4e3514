"""The program as a process of its own: piped, in a terminal, waited for."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def h2gen(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "h2gen", *arguments], capture_output=True, text=True, **more)


@contextmanager
def started(*arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """The program, piped; killed at the end if it still runs."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    with subprocess.Popen([sys.executable, "-m", "h2gen", *arguments], text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def in_a_terminal(*arguments: str, whole: bool = False) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The program with its stderr (or all of it) in a terminal of 80 by 24, and the terminal's other end."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "h2gen", *arguments],
        stdin=theirs if whole else None,
        stdout=theirs if whole else subprocess.PIPE,
        stderr=theirs,
        start_new_session=whole,
        preexec_fn=(lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)) if whole else None,  # Ctrl-C comes from it
        text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    ) as process:
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(descriptor: int, words: str | None = None, seconds: float = 120) -> str:
    """What the terminal shows until the words, a regular expression, appear in it, or to its end.

    What has been read is gone: of words that follow one another closely, ask for all at once.
    """
    seen = b""
    end = time.monotonic() + seconds
    while words is None or not re.search(words, seen.decode(errors="replace"), re.DOTALL):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        try:
            chunk = os.read(descriptor, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    return seen.decode(errors="replace")


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What the condition gives once it is true; fails when that takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run, by Linux's own account."""
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
