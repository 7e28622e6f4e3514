"""The live table: one row per forward pass with the cache's decisions, a heading above, progress below."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from h2gen.cache.config import CacheConfig
from h2gen.cache.outcome import Outcome
from h2gen.cache.outcome_words import outcome_of
from h2gen.cache.summary import Summary, cost, summarize_steps
from h2gen.cache.trace import StageRecord, StepRecord
from h2gen.cli.views.view import View, clock, progress

if TYPE_CHECKING:
    from PIL import Image

    from h2gen.cli.views.preview import TerminalPicture
    from h2gen.settings.values import Settings

_STYLES = {
    Outcome.COMPUTED: "yellow",
    Outcome.REUSED: "green",
    Outcome.FORCED: "cyan",
    Outcome.GUARDED: "magenta",
    Outcome.SKIPPED: "bright_blue",
}
_WORD_STYLES = {
    "full": "yellow",
    "guarded": "magenta",
    "detail reused": "cyan",
    "structure reused": "cyan",
    "all reused": "green",
    "skipped": "bright_blue",
}


def stage_cell(record: StageRecord, tau: float, planned: bool = False) -> Text:
    """A stage's change against its threshold, or why it was not measured; ``planned`` means that a plan decided."""
    if record.change is None:
        if record.outcome is Outcome.COMPUTED and not planned:
            return Text("off" if tau == 0 else "first", style="dim")
        return Text(record.outcome.value, style=_STYLES[record.outcome])
    if record.outcome is Outcome.REUSED:
        sign, change = "<", _apart(record.change, tau, 3)
    else:
        sign, change = "≥", record.change
    return Text(f"{change:.3f} {sign} {tau:.3g}", style=_STYLES[record.outcome])


def error_cell(record: StepRecord, tolerance: float) -> Text:
    """The estimated error of skipping the step, against the tolerance."""
    if record.error is None:
        return Text("-", style="dim")
    if record.error <= tolerance:
        sign, error, style = "≤", record.error, "bright_blue"
    else:
        sign, error, style = ">", _apart(record.error, tolerance, 4), "yellow"
    return Text(f"{error:.4f} {sign} {tolerance:.4g}", style=style)


def _apart(value: float, limit: float, digits: int) -> float:
    """The value rounded, but never to a limit that it is strictly below or above."""
    rounded, unit = round(value, digits), 0.1**digits
    if value < limit <= rounded:
        return rounded - unit
    return rounded + unit if rounded <= limit < value else rounded


# Title, width, alignment and rank of each column. A narrow terminal shows the columns with the lowest ranks.
_COLUMNS: tuple[tuple[str, int, JustifyMethod, int], ...] = (
    ("step", 4, "right", 0),
    ("pass", 6, "left", 1),
    ("sigma", 6, "right", 5),
    ("error", 15, "left", 2),
    ("structure", 13, "left", 3),
    ("detail", 13, "left", 3),
    ("outcome", 13, "left", 0),
    ("blocks", 6, "right", 4),
    ("ms", 7, "right", 6),
)
_GAP = 2
_BESIDE = 64
"""Columns of a terminal from which on a preview is shown beside the table."""
_WIDEST = 48
"""Columns of a preview beside the table."""
_LOWEST = 4
"""Lines of a preview; where there is less room it is not shown."""


def columns_for(width: int, cache: CacheConfig, contexts: bool) -> list[tuple[str, int, JustifyMethod, int]]:
    """The columns that have something to show and fit into a terminal of this width."""
    skipping = bool(cache.tolerance)
    hidden = {"pass": not contexts, "error": not skipping}
    hidden["structure"] = hidden["detail"] = skipping and not (cache.tau1 or cache.tau2)
    columns = [column for column in _COLUMNS if not hidden.get(column[0])]
    while sum(column[1] + _GAP for column in columns) - _GAP > width and len(columns) > 2:
        least = max(column[3] for column in columns)
        columns = [column for column in columns if column[3] < least]
    return columns


def steps_table(records: list[StepRecord], cache: CacheConfig, width: int, contexts: bool) -> Table:
    """One row per step, with as many columns as fit into the width; never wrapped."""
    columns = columns_for(width, cache, contexts)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for title, wide, justify, _ in columns:
        table.add_column(title, justify=justify, no_wrap=True, min_width=wide)
    for record in records:
        word = outcome_of(record)
        cells: dict[str, RenderableType] = {
            "step": str(record.step + 1),
            "pass": record.context,
            "sigma": f"{record.sigma:.4f}",
            "error": error_cell(record, cache.tolerance),
            "structure": stage_cell(record.structure, cache.tau1, cache.plan_alone),
            "detail": stage_cell(record.detail, cache.tau2, cache.plan_alone),
            "outcome": Text(word, style=_WORD_STYLES[word]),
            "blocks": f"{record.blocks_run:.3g}/{record.blocks_total:.3g}",
            "ms": f"{record.seconds * 1000:.1f}",
        }
        table.add_row(*(cells[title] for title, *_ in columns))
    return table


def counts(summary: Summary, passes: bool = False, reference_steps: int | None = None) -> str:
    """Share of blocks, estimated speed-up and steps per outcome.

    Args:
        summary: the totals.
        passes: they count passes, of which there are several per step.
        reference_steps: as in ``reference_steps``.
    """
    outcomes = ", ".join(f"{count} {word}" for word, count in summary.by_outcome())
    return f"{cost(summary.share, reference_steps)}; {'passes: ' if passes else ''}{outcomes}{summary.exactly}"


def reference_steps(settings: Settings) -> int | None:
    """The steps of the uncached run that was asked for, if the picture's own steps or solver differ from it."""
    named = settings.reference_steps is not None or settings.solver != "own"
    return (settings.reference_steps or settings.steps) if named else None


def cost_of(settings: Settings, summary: Summary | None) -> str:
    """``, 47% of blocks, est. 2.13x`` for the end of a finished picture's line; empty if it is the uncached run that
    was asked for."""
    if summary is None and settings.reference == 1:
        return ""
    share = 1 / settings.reference if summary is None else summary.share
    return f", {cost(share, reference_steps(settings))}"


class LiveTable(View):
    """Draws the steps of one picture or one batch. Use as a context manager around making it.

    Args:
        console: where it is drawn.
        heading: above the table, one line each.
        cache: of all pictures.
        passes: of all pictures together.
        contexts: whether each step has several passes.
        reference: as in ``Settings``.
        reference_steps: what ``reference_steps`` returns for the settings.
        picture: shows previews, if there are any.
    """

    def __init__(
        self,
        console: Console,
        heading: Sequence[RenderableType],
        cache: CacheConfig,
        passes: int,
        contexts: bool,
        reference: float = 1.0,
        reference_steps: int | None = None,
        picture: TerminalPicture | None = None,
    ) -> None:
        super().__init__(console, transient=False)
        self._reference, self._reference_steps = reference, reference_steps
        self._heading, self._cache = heading, cache
        self._passes, self._contexts = passes, contexts
        self._picture = picture
        self._records: deque[StepRecord] = deque(maxlen=200)
        self._summary = Summary()
        self._started = time.perf_counter()

    def on_step(self, record: StepRecord) -> None:
        if not self._records:
            self._started = time.perf_counter() - record.seconds
        if not record.picture:  # only the first picture of a batch is shown
            self._records.append(record)
        self._summary += summarize_steps([record])
        self.draw()

    def show(self, image: Image.Image) -> None:
        """Show a preview beside the table, or above it where the terminal is narrow."""
        if self._picture is not None:
            self._picture.show(image)
            self.draw()

    def render(self) -> RenderableType:
        width, height = self._console.size
        room = max(1, height - len(self._heading) - 6 - 70 // width)  # the last line wraps where it is narrow
        steps = self._steps(width, room) if not self._picture else self._with_picture(self._picture, width, room)
        return Group(*self._heading, Text(), steps, Text(), self._footer(width))

    def _steps(self, width: int, rows: int) -> Table:
        return steps_table(list(self._records)[-rows:], self._cache, width, self._contexts)

    def _with_picture(self, picture: TerminalPicture, width: int, rows: int) -> RenderableType:
        """The table with the latest preview, together at most ``rows`` lines and the table's head."""
        beside = width >= _BESIDE
        room = (min(width // 2, _WIDEST), rows + 1) if beside else (width, (rows + 1) // 2 - 1)
        if room[1] < _LOWEST:
            return self._steps(width, rows)
        columns, lines = picture.cells(*room)
        drawn = picture.render(columns, lines)
        both = Table.grid(padding=(0, 2, 0, 0))
        if beside:
            both.add_column(width=width - columns - 2)
            both.add_column(width=columns)
            both.add_row(self._steps(width - columns - 2, rows), drawn)
            return both
        both.add_column(width=columns)
        both.add_row(drawn)
        return Group(both, Text(), self._steps(width, rows - lines - 1))

    def _footer(self, width: int) -> RenderableType:
        done = self._summary.steps
        left = ""
        if 0 < done < self._passes:
            seconds = (time.perf_counter() - self._started) / done * (self._passes - done)
            left = f"{clock(seconds)} left"
        elif done:
            left = "done" if done >= self._passes else ""
        count = f"{done}/{self._passes}{' passes' if self._contexts else ''}"
        line = progress(done, self._passes, count, left, width)
        totals = self._summary.against(self._reference)
        below = Text(counts(totals, self._contexts, self._reference_steps)) if done else Text()
        return Group(line, below)
