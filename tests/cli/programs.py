"""Runs the program piped, in its own process, or in a terminal, and waits for it."""

from __future__ import annotations

import io
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import IO, Any
from unittest.mock import patch

import pytest

from h2gen.cli.app import run
from tests.cli.forked import Forked

if os.name == "posix":
    import pty

HANGS = 600
"""Seconds after which what a test waits for will never come, on however busy a machine."""


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
def started(*arguments: str, stderr: IO[str] | None = None) -> Iterator[Forked]:
    """The program, piped; killed at the end if it still runs. Skips the test where signals differ from POSIX's."""
    needs_posix()
    with closing(Forked(arguments, stderr=None if stderr is None else stderr.fileno())) as process:
        yield process


@contextmanager
def in_a_terminal(*arguments: str, whole: bool = False) -> Iterator[tuple[Forked, int]]:
    """The program with its stderr (or all of it) in a terminal of 80 by 24, and the terminal's other end."""
    needs_posix()
    ours, theirs = pty.openpty()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "80"), ("LINES", "24")):
            patch.setenv(name, value)
        process = Forked(arguments, stderr=theirs, terminal=theirs if whole else None)
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.close()
        os.close(ours)


def read_until(descriptor: int, words: str | None = None, seconds: float = HANGS) -> str:
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


def wait_for(condition: Callable[[], Any], seconds: float = HANGS) -> Any:
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
