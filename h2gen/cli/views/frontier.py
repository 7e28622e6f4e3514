"""A frontier in the terminal: its progress, and one table per budget at the end."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from h2gen.cli.console import say, stdout
from h2gen.cli.views.compare import CompareView
from h2gen.cli.views.view import columns
from h2gen.evaluation.frontier import Frontier, FrontierObserver
from h2gen.evaluation.frontier_estimate import FrontierEstimate
from h2gen.evaluation.frontier_rows import cells, titles, verdicts
from h2gen.evaluation.number_format import percent
from h2gen.wording import printable


class FrontierView(CompareView, FrontierObserver):
    """Shows the measurement of a frontier, and then its result on stdout.

    Args:
        console: where progress and notices go.
        as_json: print the result as JSON instead of tables.
        estimate: an upper bound on the work.
    """

    def __init__(self, console: Console, as_json: bool, estimate: FrontierEstimate) -> None:
        super().__init__(console, as_json)
        self._estimate = estimate

    def resumed(self, log: Path, known: int) -> None:
        noun = self._estimate.noun
        what = f"Continuing: {known} {noun}s are already measured in" if known else f"Recording each {noun} in"
        say(self._console, f"{what} {str(log)!r}.", "dim")

    def timed(self, seconds: float) -> None:
        say(self._console, self._estimate.timed(seconds), "dim")

    def ranked(self, frontier: Frontier) -> None:
        self.stop()
        for notice in frontier.comparison.notices:
            self.notice(notice)
        if self._as_json:
            print(json.dumps(frontier.to_json(), allow_nan=False))
        else:
            print_frontier(frontier)


def print_frontier(frontier: Frontier) -> None:
    """Print a table per budget, closest first, and how h2gen compares with the best alternative."""
    out = stdout()
    for budget in frontier.budgets:
        table = columns(*((title, "right") for title in titles(frontier.at(budget))))
        table.add_column("method", overflow="fold")  # wraps: the names are what the table is about
        for row in frontier.at(budget):
            label = Text(printable(row.result.label))
            table.add_row(*cells(row), label, style="bold" if row.whose == "ours" else "")
        out.print(f"At {percent(budget)} of the blocks")
        out.print(table)
        for verdict in verdicts(frontier.rows, budget):
            out.print(Text(printable(str(verdict))))
        out.print()
