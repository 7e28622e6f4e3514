"""Tuning in the terminal: the progress of the search and of the measurement, and the speeds found at the end."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from h2gen.cli.console import say, stdout
from h2gen.cli.views.evaluation import EvaluationView
from h2gen.cli.views.view import clock, columns, progress
from h2gen.evaluation.number_format import percent
from h2gen.evaluation.tune.options import TuneObserver
from h2gen.wording import below_one, plural, printable

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method
    from h2gen.evaluation.results import Comparison
    from h2gen.evaluation.tune.options import TuneOptions
    from h2gen.settings.profiles import Profile

_BAR = 24
"""Characters of the longest bar."""


class TuneView(EvaluationView, TuneObserver):
    """Shows tuning: first the search, then the comparison of what it found, then the result on stdout.

    Args:
        console: where progress and notices go.
        as_json: print the result as JSON instead of a table.
        options: how much is tried, from which the remaining time is estimated.
        noun: what is made: a picture or a video.
    """

    def __init__(self, console: Console, as_json: bool, options: TuneOptions, noun: str = "picture") -> None:
        super().__init__(console, as_json)
        self._noun = noun
        self._made = 0
        self._expected = options.search * options.images_per_prompt
        self._budgets = options.budgets
        self._best: dict[float, tuple[float, str, float]] = {}
        self._began = time.perf_counter()

    def resumed(self, measurements: int) -> None:
        say(self._console, f"Continuing an interrupted search, with {measurements} measurements.", "dim")

    def made(self) -> None:
        self._made += 1
        self.draw()

    def tried(self, budget: float, method: Method, share: float, error: float) -> None:
        best = self._best.get(budget)
        if best is None or error < best[0]:
            self._best[budget] = (error, method.label, share)
        self.tell(f"{percent(share)} of the blocks, 1 - SSIM {error:.4f}: {method.label}")
        self.draw(now=True)

    def tuned(self, profile: Profile, comparison: Comparison) -> None:
        self.stop()
        if self._as_json:
            whole = {
                "profile": str(profile.path),
                "situation": asdict(profile.key),
                "measured": dict(profile.measured),
                "choices": [asdict(choice) for choice in profile.choices],
                "comparison": comparison.to_json(),
            }
            print(json.dumps(whole, allow_nan=False))
        else:
            out = stdout()
            out.print(profile_table(profile, out.width))
            if self._console.quiet:  # otherwise its path is on stderr
                print(profile.path)

    def _before(self, width: int) -> list[RenderableType]:
        each = (time.perf_counter() - self._began) / max(1, self._made)
        left = f"at most {clock(each * max(0, self._expected - self._made))} left" if self._made else ""
        bar = progress(self._made, self._expected, plural(self._made, self._noun), left, width)
        table = columns(("budget", "right"), ("blocks", "right"), ("1 - SSIM", "right"), ("best so far", "left"))
        for budget in self._budgets:
            if budget in self._best:
                error, label, share = self._best[budget]
                words = Text(printable(label), no_wrap=True, overflow="ellipsis")
                table.add_row(percent(budget), percent(share), f"{error:.4f}", words)
        return [bar, Text(), table]


def profile_table(profile: Profile, width: int) -> Table:
    """A profile's choices, fastest first, with a bar for the distance from the uncached images."""
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
            below_one(figures.ssim_mean, 4),
            below_one(figures.ssim_worst),
            f"{figures.psnr_mean:.1f}",
        ]
        row: list[str | Text] = [*cells, Text(printable(choice.label), overflow="ellipsis")]
        if bars:
            row.append("█" * max(1, round(_BAR * (1 - figures.ssim_mean) / worst)) if worst > 0 else "")
        table.add_row(*row)
    return table
