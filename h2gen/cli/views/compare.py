"""A comparison in the terminal: how far it is while it runs, and the table of methods at its end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from h2gen.cli.views.view import View, clock, progress
from h2gen.evaluation.figures import percent, reading, times
from h2gen.evaluation.methods import Method
from h2gen.evaluation.metrics import MetricInfo
from h2gen.evaluation.results import Comparison, MethodResult, Shot, score
from h2gen.wording import printable

_GAP = 2
_NARROW = 100
_LABEL = 20
"""Characters of a method's name where the terminal is no wider than ``_NARROW``."""


class CompareView(View):
    """Watches a comparison. Use as a context manager around it. Piped, each part of the work is one plain line."""

    def __init__(self, console: Console, metrics: Sequence[MetricInfo]) -> None:
        super().__init__(console)
        self._metrics = metrics
        self._what = "Loading"
        self._runs = self._done = 0
        self._methods: list[Method] = []
        self._seconds: dict[str, list[float]] = {}
        self._shots: dict[str, list[Shot]] = {}
        self._began = time.perf_counter()

    def began(self, what: str) -> None:
        self._what = what
        self.tell(f"{what} ...")
        self.draw(now=True)

    def planned(self, methods: Sequence[Method], runs: int) -> None:
        self._methods, self._runs = list(methods), runs
        self._seconds = {method.name: [] for method in methods}
        self._shots = {method.name: [] for method in methods}
        self._began = time.perf_counter()
        self.began(f"Measuring {len(methods)} methods in {runs} runs")

    def ran(self, method: Method, case: int, seconds: float) -> None:
        self._done += 1
        self._seconds[method.name].append(seconds)
        self.draw()

    def scored(self, method: Method, shot: Shot) -> None:
        self._shots[method.name].append(shot)
        self.draw()

    def render(self) -> RenderableType:
        width, height = self._console.size
        parts: list[RenderableType] = [Text(), Text(self._what, no_wrap=True, overflow="ellipsis")]
        if self._runs:
            left = ""
            if self._done:
                each = (time.perf_counter() - self._began) / self._done
                left = f"{clock(each * (self._runs - self._done))} left"
            line = progress(self._done, self._runs, f"{self._done}/{self._runs} runs", left, width)
            parts += [line, Text(), self._so_far(width, max(1, height - 7))]
        return Group(*parts)

    def _so_far(self, width: int, room: int) -> Table:
        """The methods with what is known of them, as far as there is room."""
        table = _table([("method", "left"), ("seconds", "right"), ("blocks", "right")], width)
        shown = self._metrics if width >= 60 else self._metrics[:1]
        for metric in shown:
            table.add_column(metric.title, justify="right", no_wrap=True)
        for method in self._methods[:room]:
            seconds, shots = self._seconds[method.name], self._shots[method.name]
            cells = [f"{statistics.median(seconds):.3g}" if seconds else ""]
            cells.append(percent(statistics.fmean(shot.share for shot in shots)) if shots else "")
            for metric in shown:
                values = [shot.scores[metric.name] for shot in shots if metric.name in shot.scores]
                mean = score(values, metric.higher_is_better).mean if values else math.nan
                cells.append(reading(metric, mean, unit=False) if values else "")
            table.add_row(Text(printable(method.label)), *cells)
        return table


def _table(columns: Sequence[tuple[str, str]], width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for title, justify in columns:
        most = _LABEL if title == "method" and width <= _NARROW else None
        table.add_column(title, justify="right" if justify == "right" else "left", no_wrap=True, max_width=most)
    return table


def comparison_table(comparison: Comparison, width: int, lead: str | None = None) -> tuple[Table, Sequence[MetricInfo]]:
    """All methods, the fastest first: share of blocks and wall time in columns of their own, each metric's mean and
    worst. Also returns the metrics that the width has no room for; the one named ``lead`` comes first."""
    metrics = sorted(comparison.metrics, key=lambda metric: metric.name != lead)
    rows = sorted(comparison.methods, key=lambda method: -method.speedup)
    numbered = sum(method.kind == "h2" for method in rows) > 1
    columns = [("", "left"), *([("row", "right")] if numbered else []), ("method", "left")]
    columns += [("blocks", "right"), ("seconds", "right"), ("faster", "right")]
    table = _table(columns, width)
    label = min(_LABEL, max(len(method.label) for method in rows)) if width <= _NARROW else 40
    room = width - (28 + label + 5 * numbered)
    shown: list[MetricInfo] = []
    for metric in metrics:
        room -= max(len(metric.title), 4 if metric.unit else 5) + 5 + 2 * _GAP
        if room < 0 and shown:
            break
        shown.append(metric)
        table.add_column(metric.title, justify="right", no_wrap=True)
        table.add_column("worst", justify="right", no_wrap=True)
    numbers = {name: number for number, name in enumerate(row_names(comparison), 1)}
    for method in rows:
        cells: list[Text | str] = ["*" if method.pareto else ""]
        if numbered:
            cells.append(str(numbers.get(method.name, "")))
        cells += [
            Text(printable(method.label), overflow="ellipsis"),
            percent(method.share),
            f"{method.seconds.median:.3g}",
            f"{times(method.speedup)}x",
        ]
        for metric in shown:
            cells += _scores(method, metric)
        style = "bold" if method.name == comparison.chosen else "dim" if method.kind in ("reference", "truth") else ""
        table.add_row(*cells, style=style)
    return table, metrics[len(shown) :]


def row_names(comparison: Comparison) -> list[str]:
    """H2-Cache's methods in the order of the grid: row numbers count these, whatever the table is sorted by."""
    return [method.name for method in comparison.methods if method.kind == "h2"]


def _scores(method: MethodResult, metric: MetricInfo) -> tuple[str, str]:
    found = method.scores.get(metric.name)
    if found is None or (method.kind == "reference" and metric.fidelity):
        return "", ""

    def short(value: float) -> str:
        return "same" if value == float("inf") else reading(metric, value, unit=False)

    return short(method.mean(metric)), short(found.worst)
