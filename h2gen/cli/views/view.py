"""The base of live views: redrawn in the terminal while work is in progress, and removed at its end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from h2gen.cli.console import say
from h2gen.wording import printable

_REDRAW = 0.1
"""Seconds between two redraws: each takes some milliseconds of the work's time."""

_View = TypeVar("_View", bound="View")


class View(ABC):
    """Draws itself in a terminal. Use as a context manager around the work.

    Args:
        console: where it is drawn; never if piped or quiet.
        transient: remove it at its end.
    """

    def __init__(self, console: Console, *, transient: bool = True) -> None:
        self._console, self._transient = console, transient
        self._drawn = time.perf_counter()
        self._live: Live | None = None

    def __enter__(self: _View) -> _View:
        self.start()
        return self

    def start(self) -> None:
        """Take over the terminal."""
        if self._console.is_terminal and not self._console.quiet:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
                transient=self._transient,
                get_renderable=self.render,
            )
            self._live.start(refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Release the terminal."""
        if self._live is not None:
            self.draw(now=True)  # the last state stays visible
            self._live.stop()
            self._live = None

    @abstractmethod
    def render(self) -> RenderableType:
        """What to draw, not higher than the terminal."""

    def draw(self, now: bool = False) -> None:
        """Redraw, unless it was redrawn a moment ago; always with ``now``."""
        if self._live is not None and (now or time.perf_counter() - self._drawn >= _REDRAW):
            self._live.refresh()
            self._drawn = time.perf_counter()

    def tell(self, line: str) -> None:
        """Print a line instead, if nothing is drawn."""
        if self._live is None:
            say(self._console, line, "dim")


def progress(done: int, total: int, count: str, left: str, width: int) -> RenderableType:
    """A bar, the count, and the time left; ``width`` is the terminal's."""
    line = Table.grid(padding=(0, 2, 0, 0))
    room = max(8, min(30, width - len(count) - len(left) - 6))
    line.add_row(ProgressBar(total=total, completed=min(done, total), width=room), Text(count), Text(left))
    return line


class Facts:
    """One line of facts. Where they do not fit, those with the highest ranks are left out.

    Args:
        facts: each with its rank.
    """

    def __init__(self, facts: Sequence[tuple[str, int]]) -> None:
        self._facts = [(printable(fact), rank) for fact, rank in facts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ranks = sorted({rank for _, rank in self._facts}, reverse=True)
        lines = [" · ".join(fact for fact, rank in self._facts if rank <= highest) for highest in ranks]
        line = next((line for line in lines if cell_len(line) <= options.max_width), lines[0])
        yield Text(line, style="dim", no_wrap=True, overflow="ellipsis")


def columns(*titles: tuple[str, str]) -> Table:
    """A plain table with these columns: title and alignment of each."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title, justify in titles:
        number = justify == "right"  # a narrow terminal must cut words, never numbers
        least = max(len(title), 6) if number else None
        table.add_column(title, justify="right" if number else "left", no_wrap=True, min_width=least)
    return table


def clock(seconds: float) -> str:
    """``3:07``, ``2:03:07``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
