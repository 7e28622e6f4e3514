"""The report's table of all methods, as data for the template."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from h2gen.evaluation.charts.pareto import KINDS, glyph, truth_steps
from h2gen.evaluation.number_format import percent, reading, second_digits, times
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.evaluation.metrics import MetricInfo
    from h2gen.evaluation.results import Comparison, MethodResult


@dataclass(frozen=True)
class Column:
    """A column; ``rising`` means that its first click sorts in ascending order."""

    title: str
    rising: bool


@dataclass(frozen=True)
class Cell:
    """A figure, its sort key, the case that a click leads to, or -1, and a style's name."""

    words: str
    value: float | None
    case: int = -1
    style: str = ""


@dataclass(frozen=True)
class Row:
    """A method."""

    index: int
    name: str
    label: str
    kind: str
    mark: Markup
    best: bool
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Groups of columns (title, number of columns), the columns after the method, and the rows, fastest first."""

    groups: list[tuple[str, int]]
    columns: list[Column]
    rows: list[Row]


def table(comparison: Comparison) -> Table:
    """All methods, fastest first, with separate columns for wall time, share of blocks and each metric."""
    # The gain and its price come first: a phone shows the first columns.
    measured = [(metric, False) for metric in comparison.metrics if _any(comparison, metric, False)]
    measured += [(metric, True) for metric in comparison.metrics if _any(comparison, metric, True)]
    groups, columns = [("Speed-up", 1)], [Column("times as fast", False)]
    ranges = any(method.seconds.runs > 1 for method in comparison.methods)
    kinds = ("mean", "worst") if len(comparison.cases) > 1 else ("value",)
    for metric, truth in measured:
        unit = f", {metric.unit}" if metric.unit else ""
        groups.append(
            (printable(metric.title + unit + (f" to {truth_steps(comparison)} steps" if truth else "")), len(kinds))
        )
        columns += [Column(kind, not metric.higher_is_better) for kind in kinds]
    groups += [("Wall time", 1 + ranges), ("Work", 1)]
    columns += [Column("seconds", True), *([Column("range", True)] if ranges else []), Column("blocks run", True)]
    if any(method.identical > 0 for method in comparison.methods if method.kind != "reference"):
        groups.append(("", 1))
        columns.append(Column("identical", False))
    order = sorted(range(len(comparison.methods)), key=lambda index: -comparison.methods[index].speedup)
    rows = []
    for index in order:
        method = comparison.methods[index]
        cells = [Cell(f"{times(method.speedup)}×", method.speedup)]
        for metric, truth in measured:
            cells += _scores(method, metric, truth)[: len(kinds)]
        cells += _costs(method, ranges)
        if columns[-1].title == "identical":
            words = "" if method.kind == "reference" else f"{method.identical} of {len(method.samples)}"
            cells.append(Cell(words, method.identical))
        rows.append(
            Row(
                index,
                printable(method.name),
                printable(method.label),
                KINDS.get(method.kind, method.kind),
                Markup(glyph(method.kind)),
                method.pareto and method.kind not in ("reference", "truth"),
                cells,
            )
        )
    return Table(groups, columns, rows)


def _any(comparison: Comparison, metric: MetricInfo, truth: bool) -> bool:
    return any(metric.name in (m.truth_scores if truth else m.scores) for m in comparison.methods)


def _costs(method: MethodResult, ranges: bool) -> list[Cell]:
    """Seconds, their range if there is one in the table, and blocks."""
    timing = method.seconds
    digits = second_digits(timing.median)
    cells = [Cell(f"{timing.median:.{digits}f}", timing.median)]
    if ranges:
        spread = f"{timing.low:.{digits}f}\u2013{timing.high:.{digits}f}" if timing.runs > 1 else ""
        cells.append(Cell(spread, timing.high - timing.low, style="range"))
    return [*cells, Cell(percent(method.share), method.share)]


def _scores(method: MethodResult, metric: MetricInfo, truth: bool) -> list[Cell]:
    score = (method.truth_scores if truth else method.scores).get(metric.name)
    if score is None or (method.kind == "reference" and metric.fidelity and not truth):
        return [Cell("", None), Cell("", None)]
    value = method.mean(metric, truth=truth)
    return [
        Cell(reading(metric, value, unit=False), _sortable(value)),
        Cell(reading(metric, score.worst, unit=False), _sortable(score.worst), score.worst_case),
    ]


def _sortable(value: float) -> float | None:
    """JSON and HTML have no infinity."""
    return None if math.isnan(value) else math.copysign(1e30, value) if math.isinf(value) else value
