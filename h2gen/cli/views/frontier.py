"""A frontier in the terminal: its progress, and one table per budget at the end."""

from __future__ import annotations

import json

from rich.text import Text

from h2gen.cli.console import stdout
from h2gen.cli.views.compare import CompareView
from h2gen.cli.views.view import columns
from h2gen.evaluation.frontier import Frontier, FrontierObserver
from h2gen.evaluation.frontier_rows import verdict
from h2gen.evaluation.number_format import percent
from h2gen.wording import printable


class FrontierView(CompareView, FrontierObserver):
    """Shows the measurement of a frontier, and then its result on stdout."""

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
        numbers = [(title, "right") for title in ("blocks", "1 - SSIM", "worst", "PSNR", "worst")]
        table = columns(*numbers, ("method", "left"))
        for row in frontier.at(budget):
            mean, worst = row.psnr
            table.add_row(
                percent(row.result.share),
                f"{row.error:.4f}",
                f"{row.worst_error:.3f}",
                f"{mean:.1f}",
                f"{worst:.1f}",
                Text(printable(row.result.label), overflow="ellipsis"),
                style="bold" if row.whose == "ours" else "",
            )
        out.print(f"At {percent(budget)} of the blocks")
        out.print(table)
        sentence = verdict(frontier.rows, budget)
        if sentence:
            out.print(Text(printable(sentence)))
        out.print()
