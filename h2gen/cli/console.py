"""The consoles: one on stdout for results, one on stderr for everything else."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

from h2gen.errors import PromptWarning
from h2gen.models.choices import LIBRARIES
from h2gen.wording import printable

_PIPE = 1_000_000
"""Columns of a pipe, so that output which is not read on a screen is never wrapped."""
_WIDEST = 10_000
"""The most columns of a terminal; COLUMNS may hold any number."""


def make_console() -> Console:
    """A console on stderr. Cursor codes and colours only in a real terminal, whatever FORCE_COLOR says."""
    live = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    return Console(stderr=True, force_terminal=live, highlight=False, markup=False, emoji=False, _environ=_environ())


def stdout() -> Console:
    """A console on stdout for tables; piped, it is as wide as they are."""
    live = sys.stdout.isatty()
    width, file = (None, None) if live else (_PIPE, cast(IO[str], _Trimmed()))
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False, _environ=_environ())


class _Trimmed:
    """Standard output without the spaces that tables add at the ends of rows."""

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


def _environ() -> dict[str, str]:
    """The environment without an impossible terminal size: some programs set COLUMNS and LINES to 0."""

    def is_size(text: str) -> bool:
        return text.isdecimal() and 0 < int(text[:9]) <= _WIDEST

    return {key: text for key, text in os.environ.items() if key not in ("COLUMNS", "LINES") or is_size(text)}


def say(console: Console, message: str, style: str = "") -> None:
    """Print one line, with control characters removed; wrapped at words in a terminal, otherwise not wrapped."""
    console.print(Text(printable(message), style=style), soft_wrap=not console.is_terminal)


def say_stopping(console: Console) -> None:
    """What the first Ctrl-C prints; in a batch, the second."""
    say(console, "Stopping after this step; press Ctrl-C again to stop at once.", "yellow")


def complain(message: str) -> None:
    """Print an error, in one line."""
    line = Text("h2gen: ", style="bold red")
    line.append(printable(message), style="not bold default")
    console = make_console()
    console.print(line, soft_wrap=not console.is_terminal)


class _Logs(logging.Handler):
    """Prints what diffusers and transformers log."""

    def __init__(self, console: Console, verbose: bool) -> None:
        super().__init__(logging.WARNING)
        self._console, self._verbose = console, verbose

    def emit(self, record: logging.LogRecord) -> None:
        if self._verbose:  # it is for programmers
            say(self._console, record.getMessage(), "yellow")


def route_warnings(console: Console, verbose: bool) -> None:
    """Send Python's warnings and the libraries' logs through the console, so that they do not break the live table."""

    def show(message: Warning | str, category: type[Warning], *_args: Any, **_kwargs: Any) -> None:
        if verbose or category in (RuntimeWarning, PromptWarning):
            say(console, str(message), "yellow")

    warnings.showwarning = show
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers = [_Logs(console, verbose)]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
