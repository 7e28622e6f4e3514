"""A comparison in the terminal: its progress, and the table of methods at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from h2gen.cli.console import stdout
from h2gen.cli.views.evaluation import GAP, LABEL, NARROW, EvaluationView, methods_table
from h2gen.evaluation.metrics import MetricInfo
from h2gen.evaluation.number_format import percent, reading, times
from h2gen.evaluation.options import CompareObserver
from h2gen.evaluation.recommend import row_names
from h2gen.evaluation.report import headline_and_summary
from h2gen.evaluation.results import Comparison, MethodResult
from h2gen.wording import listed, printable


class CompareView(EvaluationView, CompareObserver):
    """Shows a comparison: its progress, and then its result on stdout.

    Args:
        console: where progress and notices go.
        as_json: print the result as JSON instead of a table.
        lead: name of the metric that gets the table's first columns.
    """

    def __init__(self, console: Console, as_json: bool, lead: str | None = None) -> None:
        super().__init__(console, as_json)
        self._lead = lead

    def compared(self, comparison: Comparison) -> None:
        self.stop()
        for notice in comparison.notices:
            self.notice(notice)
        if self._as_json:
            print(json.dumps(comparison.to_json(), allow_nan=False))
        else:
            print_comparison(comparison, self._lead)


def print_comparison(comparison: Comparison, lead: str | None = None) -> None:
    """Print the table of methods and the summary; the metric named ``lead`` has the table's first columns."""
    out = stdout()
    table, left_out = comparison_table(comparison, out.width, lead)
    out.print(table)
    better = "closer" if comparison.fidelity_metric is not None else "better"
    out.print(Text(f"* No other row is both faster and {better}.", style="dim"))
    names = [metric.title for metric in left_out]
    names += ["the 400-step results"] if comparison.reference.truth_scores else []
    if names:
        verb = "does" if len(left_out) == 1 == len(names) else "do"
        whole = listed(names)
        lacking = whole[0].upper() + whole[1:]
        out.print(Text(f"{lacking} {verb} not fit in this window; see --json or --report.", style="dim"))
    headline, sentences = headline_and_summary(comparison)
    out.print()
    out.print(Text(f"{printable(headline)}.", style="bold"))
    out.print(Text(printable(" ".join(sentences))))


def comparison_table(comparison: Comparison, width: int, lead: str | None = None) -> tuple[Table, Sequence[MetricInfo]]:
    """All methods, fastest first, with share of blocks, wall time, and each metric's mean and worst value.

    Returns:
        The table, and the metrics that do not fit into the width; the one named ``lead`` comes first.
    """
    metrics = sorted(comparison.metrics, key=lambda metric: metric.name != lead)
    rows = sorted(comparison.methods, key=lambda method: -method.speedup)
    numbers = {name: number for number, name in enumerate(row_names(comparison.methods), 1)}
    numbered = len(numbers) > 1
    columns = [("", "left"), *([("row", "right")] if numbered else []), ("method", "left")]
    columns += [("blocks", "right"), ("seconds", "right"), ("faster", "right")]
    table = methods_table(columns, width, whole=True)
    label = min(LABEL, max(len(method.label) for method in rows)) if width <= NARROW else 40
    room = width - (28 + label + 5 * numbered)
    shown: list[MetricInfo] = []
    for metric in metrics:
        room -= max(len(metric.title), 4 if metric.unit else 5) + 5 + 2 * GAP
        if room < 0 and shown:
            break
        shown.append(metric)
        table.add_column(metric.title, justify="right", no_wrap=True)
        table.add_column("worst", justify="right", no_wrap=True)
    for method in rows:
        cells: list[Text | str] = ["*" if method.pareto else ""]
        if numbered:
            cells.append(str(numbers.get(method.name, "")))
        cells += [
            Text(printable(method.label)),
            percent(method.share),
            f"{method.seconds.median:.3g}",
            f"{times(method.speedup)}x",
        ]
        for metric in shown:
            cells += _scores(method, metric)
        style = "bold" if method.name == comparison.chosen else "dim" if method.kind in ("reference", "truth") else ""
        table.add_row(*cells, style=style)
    return table, metrics[len(shown) :]


def _scores(method: MethodResult, metric: MetricInfo) -> tuple[str, str]:
    found = method.scores.get(metric.name)
    if found is None or (method.kind == "reference" and metric.fidelity):
        return "", ""

    def short(value: float) -> str:
        return "same" if value == float("inf") else reading(metric, value, unit=False)

    return short(method.mean(metric)), short(found.worst)
