"""The chart of speed against fidelity, with one point per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from h2gen.cache.policies.plan import plan_of
from h2gen.evaluation.charts.svg import Box, document, escape, legend, n, plain, shorten, ticks, width_of
from h2gen.evaluation.number_format import reading, times
from h2gen.evaluation.results import best_of

if TYPE_CHECKING:
    from h2gen.evaluation.metrics import MetricInfo
    from h2gen.evaluation.results import Comparison, MethodResult

_SHAPES = {
    "h2": "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0z",
    "steps": "M-5 -5H5V5H-5z",
    "solver": "M0 -6.5L6.2 4.8H-6.2z",
    "peer": "M0 -6.8L6.8 0L0 6.8L-6.8 0z",
    "reference": "M-2 -6.2H2V-2H6.2V2H2V6.2H-2V2H-6.2V-2H-2z",
}
KINDS = {
    "h2": "H2-Cache",
    "steps": "fewer steps",
    "solver": "another solver",
    "peer": "other caches",
    "reference": "uncached",
    "truth": "uncached, very many steps",
}
"""Display names of the kinds of methods."""

_BAND = 30.0
_BESIDE = (
    (13, 4, ""),
    (9, -9, ""),
    (-13, 4, "end"),
    (0, -13, "mid"),
    (0, 21, "mid"),
    (-9, -9, "end"),
    (-9, 18, "end"),
    (9, 18, ""),
)
"""Possible positions of a name relative to its point, in pixels, the best one first."""


def glyph(kind: str, size: float = 14.0) -> str:
    """A kind's symbol as a small SVG, for tables; empty for a kind that the chart leaves out."""
    if kind not in _SHAPES:
        return ""
    return (
        f'<svg class="h2gen-chart" viewBox="-8 -8 16 16" width="{n(size)}" height="{n(size)}" aria-hidden="true">'
        f'<g class="{kind}"><path class="mark" d="{_SHAPES[kind]}"/></g></svg>'
    )


def short_label(method: MethodResult) -> str:
    """A short name for a point; for H2-Cache only its policy, such as its thresholds."""
    detail = method.detail
    if method.kind == "h2" and detail.get("tolerance") and not (detail.get("tau1") or detail.get("tau2")):
        return f"{detail['tolerance']:.2g}"
    if method.kind == "h2" and detail.get("plan"):
        plan = plan_of(detail["plan"], 0)
        return f"{plan.count('F')} of {len(plan)}"
    if method.kind == "h2" and "tau1" in detail and "tau2" in detail:
        return f"{detail['tau1']:g} / {detail['tau2']:g}"
    return "uncached" if method.kind == "reference" else method.label


def truth_steps(comparison: Comparison) -> str:
    """The number of steps of the image used as the true solution."""
    return next((str(method.steps) for method in comparison.methods if method.kind == "truth"), "very many")


@dataclass(frozen=True)
class _Point:
    method: MethodResult
    value: float
    x: float = 0.0
    y: float = 0.0


def pareto_chart(
    comparison: Comparison,
    metric: MetricInfo,
    *,
    against: str = "reference",
    width: float = 520.0,
    standalone: bool = True,
) -> str:
    """Draw all methods as SVG: further right is faster by wall time, higher up is better by the metric.

    Each point carries ``data-method``, the method's name, and can be focused by keyboard. The truth is left out: it
    does not compete in speed. An infinite value (identical images) is drawn in a separate band at the upper edge.

    Args:
        comparison: what was measured.
        metric: one of its metrics; if less is better, the axis is reversed.
        against: what the images were compared with, ``reference`` or ``truth``.
        width: pixels at which the chart will be shown (350 to 900); text keeps its size.
        standalone: with its own colours, for light and dark, and a background; otherwise the page holds ``STYLE``.
    """
    truth = against == "truth"
    points = [_Point(m, m.mean(metric, truth=truth)) for m in comparison.methods if m.kind in _SHAPES]
    points = [point for point in points if not math.isnan(point.value)]
    methods = [point.method for point in points]
    if metric == comparison.fidelity_metric and not truth:
        best = {method.name for method in methods if method.pareto}
    else:
        best = best_of(methods, metric, truth=truth)
    words = {kind: title for kind, title in KINDS.items() if any(m.kind == kind for m in methods)}
    if "h2" in words:
        words["h2"] += ", by its settings"
    entries = [
        (f'<g class="{kind}"><path class="mark" transform="translate(6 0)" d="{_SHAPES[kind]}"/></g>', title, 12.0)
        for kind, title in words.items()
    ]
    if len(best) > 1:
        entries.append(('<path class="best" d="M0 0H18"/>', "no other method is both faster and better", 18.0))
    parts, used = legend(entries, 4, 14, width - 8)
    parts.append(
        f'<text class="muted" x="4" y="{n(18 + used + 10)}">{escape(_axis_title(comparison, metric, truth))}</text>'
    )
    high = 330.0 if width >= 480 else 270.0
    box, frame = _frame(points, metric, 18 + used + 22, width, high)
    parts += frame
    middle = n((box.left + box.right) / 2)
    parts.append(f'<text class="muted mid" x="{middle}" y="{n(box.bottom + 38)}">{_X_TITLE}</text>')
    placed = [_place(point, box, metric) for point in points]
    line = sorted((point for point in placed if point.method.name in best), key=lambda point: point.x)
    for one, other in pairwise(line):  # dotted where it leaves the band, which is off the scale
        dotted = ' stroke-dasharray="2 4"' if math.isinf(one.value) else ""
        parts.append(f'<path class="best"{dotted} d="M{n(one.x)} {n(one.y)}L{n(other.x)} {n(other.y)}"/>')
    names = _names(placed, line, comparison.chosen, box)
    # The chosen one last, so that it is drawn on top.
    for point in sorted(placed, key=lambda point: (point.method.name == comparison.chosen, point.method.name in best)):
        parts.append(_mark(point, metric, comparison.chosen, names.get(point.method.name, "")))
    described = f"{metric.title} and speed-up of {len(placed)} methods."
    return document(width, box.bottom + 46, described, parts, standalone=standalone)


_X_TITLE = "speed-up over uncached, by wall time"


def _axis_title(comparison: Comparison, metric: MetricInfo, truth: bool) -> str:
    unit = f", {metric.unit}" if metric.unit else ""
    if not metric.fidelity:
        return f"{metric.title}{unit} of the {comparison.noun} by itself: higher is better"
    noun = comparison.noun
    what = f"the {noun} of {truth_steps(comparison)} steps" if truth else f"the uncached {noun}"
    return f"{metric.title}{unit}: higher is closer to {what}"


def _frame(
    points: Sequence[_Point], metric: MetricInfo, top: float, width: float, high: float
) -> tuple[Box, list[str]]:
    """The plot's box, with its grid and axis labels."""
    finite = [point.value for point in points if math.isfinite(point.value)] or [0.0, 1.0]
    low, most = _padded(finite, 0.09)
    first, last = _padded([point.method.speedup for point in points] or [1.0], 0.07)
    first = max(first, 0.0)
    numbers = ticks(low, most, 6)
    labels = plain(numbers)
    band = any(math.isinf(point.value) for point in points)
    longest = max([*labels, "identical"] if band else labels, key=width_of)
    left = 13 + width_of(longest)
    if not metric.higher_is_better:
        low, most = most, low
    box = Box(left, top + (_BAND if band else 0), width - 12, top + high, first, last, low, most)
    parts = []
    if band:
        y = n(top + _BAND / 2)
        parts.append(f'<path class="grid" stroke-dasharray="2 4" d="M{n(left)} {y}H{n(box.right)}"/>')
        parts.append(f'<text class="muted end" x="{n(left - 7)}" y="{n(top + _BAND / 2 + 4)}">identical</text>')
    for value, label in zip(numbers, labels, strict=True):
        y = n(box.y(value))
        parts.append(f'<path class="grid" d="M{n(left)} {y}H{n(box.right)}"/>')
        parts.append(f'<text class="muted end" x="{n(left - 7)}" y="{n(box.y(value) + 4)}">{label}</text>')
    numbers = ticks(first, last, max(2, int((box.right - left) / 56)))
    for value, label in zip(numbers, plain(numbers), strict=True):
        x = n(box.x(value))
        parts.append(f'<path class="grid" d="M{x} {n(box.bottom)}v5"/>')
        parts.append(f'<text class="muted mid" x="{x}" y="{n(box.bottom + 19)}">{label}×</text>')
    return box, parts


def _padded(values: Sequence[float], part: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * part or abs(high) * 0.1 or 0.1
    return low - room, high + room


def _place(point: _Point, box: Box, metric: MetricInfo) -> _Point:
    y = box.top - _BAND / 2 if math.isinf(point.value) else box.y(point.value)
    return _Point(point.method, point.value, box.x(point.method.speedup), y)


def _names(points: Sequence[_Point], line: Sequence[_Point], chosen: str, box: Box) -> dict[str, str]:
    """A name next to each point that has room for it, in the order chosen, reference, Pareto-optimal, others."""
    taken = [(point.x - 7, point.y - 7, point.x + 7, point.y + 7) for point in points]
    for one, other in pairwise(line):  # boxes along the line keep it clear
        pieces = max(1, int(math.hypot(other.x - one.x, other.y - one.y) / 6))
        for piece in range(1, pieces):
            x, y = (a + (b - a) * piece / pieces for a, b in ((one.x, other.x), (one.y, other.y)))
            taken.append((x - 1, y - 1, x + 1, y + 1))
    names: dict[str, str] = {}

    def rank(point: _Point) -> tuple[bool, bool, bool]:
        name = point.method.name
        return name != chosen, point.method.kind != "reference", all(name != other.method.name for other in line)

    for point in sorted(points, key=rank):
        words = shorten(short_label(point.method), 190, 11.5)
        wide = width_of(words, 11.5)
        for dx, dy, anchor in _BESIDE:
            x, y = point.x + dx, point.y + dy
            left = x - (wide / 2 if anchor == "mid" else wide if anchor == "end" else 0)
            area = (left, y - 10, left + wide, y + 3)
            inside = area[0] >= box.left and area[2] <= box.right + 8 and area[3] <= box.bottom
            if inside and not any(_overlap(area, other) for other in taken):
                taken.append(area)
                kind = f"name {anchor}".strip()
                names[point.method.name] = (
                    f'<text class="{kind}" style="font-size:11.5px" x="{dx}" y="{dy}">{escape(words)}</text>'
                )
                break
    return names


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _mark(point: _Point, metric: MetricInfo, chosen: str, name: str) -> str:
    method = point.method
    words = escape(
        f"{method.label}: {times(method.speedup)} times as fast, {metric.title} {reading(metric, point.value)}"
    )
    kind = f"point {method.kind}" + (" chosen" if method.name == chosen else "")
    return (
        f'<g class="{kind}" data-method="{escape(method.name)}" tabindex="0" role="button" aria-label="{words}" '
        f'transform="translate({n(point.x)} {n(point.y)})"><title>{words}</title><circle class="touch" r="12"/>'
        f'<circle class="ring" r="10"/><path class="mark" d="{_SHAPES[method.kind]}"/>{name}</g>'
    )
