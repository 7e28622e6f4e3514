"""A search in the terminal: what it tries while it runs, and the curve at its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from h2gen.cli.views.view import View, clock, columns, progress
from h2gen.evaluation.figures import percent
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method
    from h2gen.evaluation.tune.search import TuneOptions
    from h2gen.settings.profiles import Profile


class TuneView(View):
    """Watches a search. Use as a context manager around it. Piped, each budget's candidates are plain lines.

    Args:
        console: where it is shown.
        cases: prompts that the search makes of each candidate.
        wishes: how much is tried, from which the bar knows how far it is, about.
    """

    def __init__(self, console: Console, cases: int, wishes: TuneOptions) -> None:
        super().__init__(console)
        self._what = "Loading"
        self._made = 0
        self._about = cases * wishes.pictures
        self._budgets = list(wishes.budgets)
        self._best: dict[float, tuple[float, str, float, int]] = {}
        self._began = time.perf_counter()

    def began(self, what: str) -> None:
        self._what = what
        self.tell(f"{what} ...")
        self.draw(now=True)

    def made(self) -> None:
        self._made += 1
        self.draw()

    def tried(self, budget: float, method: Method, share: float, error: float) -> None:
        known = self._best.get(budget)
        count = 1 if known is None else known[3] + 1
        if known is None or error < known[0]:
            self._best[budget] = (error, method.label, share, count)
        else:
            self._best[budget] = (*known[:3], count)
        self.tell(f"{percent(share)} of the blocks, 1 - SSIM {error:.4f}: {method.label}")
        self.draw(now=True)

    def render(self) -> RenderableType:
        each = (time.perf_counter() - self._began) / max(1, self._made)
        left = f"at most {clock(each * max(0, self._about - self._made))} left" if self._made else ""
        line = progress(self._made, self._about, f"{self._made} pictures", left, self._console.width)
        table = columns(("budget", "right"), ("blocks", "right"), ("1 - SSIM", "right"), ("best so far", "left"))
        for budget in self._budgets:
            if budget in self._best:
                error, label, share, _ = self._best[budget]
                words = Text(printable(label), no_wrap=True, overflow="ellipsis")
                table.add_row(percent(budget), percent(share), f"{error:.4f}", words)
        return Group(Text(), Text(self._what, no_wrap=True, overflow="ellipsis"), line, Text(), table)


_BAR = 24
"""Characters of the longest bar."""


def curve_table(profile: Profile, width: int) -> Table:
    """A profile's choices, the fastest first, with a bar of how far each picture is from the uncached one."""
    table = columns(
        ("faster", "right"),
        ("blocks", "right"),
        ("SSIM", "right"),
        ("worst", "right"),
        ("PSNR", "right"),
        ("how", "left"),
    )
    bars = width >= 100
    if bars:
        table.add_column("1 - SSIM", no_wrap=True)
    worst = max(1 - choice.figures.ssim_mean for choice in profile.choices)
    for choice in profile.choices:
        figures = choice.figures
        cells = [
            f"{figures.speedup:.2f}x",
            percent(figures.share),
            f"{figures.ssim_mean:.4f}",
            f"{figures.ssim_worst:.3f}",
            f"{figures.psnr_mean:.1f}",
        ]
        row: list[str | Text] = [*cells, Text(printable(choice.label), overflow="ellipsis")]
        if bars:
            row.append("█" * max(1, round(_BAR * (1 - figures.ssim_mean) / worst)) if worst > 0 else "")
        table.add_row(*row)
    return table
