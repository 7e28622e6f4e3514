"""The chart of one image's decisions: both stages' changes against their thresholds, and the outcome of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from h2gen.cache.config import CacheConfig
from h2gen.cache.outcome_words import outcome_of
from h2gen.cache.trace import StepRecord
from h2gen.evaluation.charts.svg import Box, document, legend, n, plain, ticks
from h2gen.evaluation.number_format import percent

_STRIP = 30.0
_GAP = 9.0
_LEAST = 3.0
"""Minimum height in pixels of a step's bar: 2 of 57 blocks would not be visible."""
_HIGHEST = 4.0
"""Changes above this multiple of the larger threshold are drawn at the upper edge; a threshold this far above all
changes is left out."""

_CLASS = {
    "full": "full",
    "guarded": "guarded",
    "detail reused": "part",
    "structure reused": "other",
    "all reused": "reused",
    "skipped": "skipped",
}


@dataclass(frozen=True)
class _Curve:
    """Numbers that decided steps, and their limit. ``off`` is the legend if there is no limit."""

    style: str
    name: str
    limit: float
    off: str
    of: Callable[[StepRecord], float | None]

    def values(self, steps: Iterable[StepRecord]) -> list[float]:
        """The finite values."""
        found = (self.of(record) for record in steps)
        return [value for value in found if value is not None and math.isfinite(value)]


def _curves(cache: CacheConfig) -> list[_Curve]:
    if cache.plan_alone:
        return []
    if cache.tolerance and not (cache.tau1 or cache.tau2):
        return [_Curve("structure", "error if skipped", cache.tolerance, "", lambda record: record.error)]
    detail_off = "detail, reused along with structure only"
    return [
        _Curve("structure", "structure", cache.tau1, "structure, never reused", lambda record: record.structure.change),
        _Curve("detail", "detail", cache.tau2, detail_off, lambda record: record.detail.change),
    ]


_PASSES = {"cond": "Pass with the prompt", "uncond": "Pass without the prompt"}


def decisions_chart(
    steps: Sequence[StepRecord],
    cache: CacheConfig,
    *,
    width: float = 520.0,
    standalone: bool = True,
    hover: bool = True,
    noun: str = "picture",
) -> str:
    """Draw one image's steps as SVG.

    The upper plot shows the relative change of each stage since its last computed step, with its threshold as a dashed
    line. A line has a gap where nothing was measured: at guarded and first steps, and for the detail stage if it was
    reused along with the structure. With only a tolerance the plot shows the error of skipping each step. The lower
    plot has one bar per step, as high as the share of the blocks that ran, coloured by outcome. With true guidance each
    of the two passes has its own plots.

    Args:
        steps: one image's records, in order; at least one.
        cache: the settings that they were decided with.
        width: pixels at which the chart will be shown (350 to 900); text keeps its size.
        standalone: with its own colours, for light and dark, and a background; otherwise the page holds ``STYLE``.
        hover: show each step's figures on hover.
        noun: what was made: a picture or a video.

    Raises:
        ValueError: there are no steps.
    """
    if not steps:
        raise ValueError("There are no steps to draw.")
    passes: dict[str, list[StepRecord]] = {}
    for record in steps:
        passes.setdefault(record.context, []).append(record)
    curves = _curves(cache)
    high = _highest(steps, curves)
    parts, top = legend(_lines(steps, curves, high), 4, 14, width - 8)
    top += 8
    height = 150.0 if width >= 480 else 124.0
    for context, records in passes.items():
        if len(passes) > 1:
            parts.append(f'<text x="4" y="{n(top + 14)}" font-weight="600">{_PASSES.get(context, "Other pass")}</text>')
            top += 20
        measured = "change since the last computed step"
        if cache.tolerance and len(curves) == 1:
            measured = f"error of the {noun} if the step is skipped, in units of sigma times the velocity"
        parts.append(f'<text class="muted" x="4" y="{n(top + 12)}">{measured}</text>')
        labels = plain(ticks(0, high, 5))
        left = 14 + 7.5 * max(len(label) for label in labels)
        box = Box(left, top + 24, width - 10, top + 24 + height, 0, len(records), 0, high)
        parts += _plot(box, records, curves)
        parts += _strip(box, records)
        parts += _axis(box, len(records))
        if hover:
            parts += _hits(box, records, curves)
        top = box.bottom + _GAP + _STRIP + 30
    parts.append(f'<text class="muted mid" x="{n((left + width - 10) / 2)}" y="{n(top + 4)}">step</text>')
    bars, used = legend(_bars(steps), 4, top + 24, width - 8)
    return document(width, top + 24 + used - 6, _description(steps), parts + bars, standalone=standalone)


def _highest(steps: Sequence[StepRecord], curves: Sequence[_Curve]) -> float:
    """The value at the plot's upper edge."""
    largest = max([0.0, *(value for curve in curves for value in curve.values(steps))])
    # Neither a limit far above all values nor a value far above the limits should set the scale.
    limits = [curve.limit for curve in curves if 0 < curve.limit <= _HIGHEST * largest]
    top = max(*limits, min(largest, _HIGHEST * max(limits))) if limits else largest
    return 1.06 * top or 1.0


def _lines(steps: Sequence[StepRecord], curves: Sequence[_Curve], high: float) -> list[tuple[str, str, float]]:
    """The legend of the plot."""
    entries = []
    if not curves:
        return [("", "decided by a plan; nothing was measured", -6.0)]
    for curve in curves:
        swatch = f'<path class="line {curve.style}" d="M0 0H18"/><path class="dots {curve.style}" d="M9 0h0"/>'
        if curve.limit:
            swatch += f'<path class="tau {curve.style}" style="stroke-dashoffset:0" d="M24 0H39"/>'
        limit = "threshold" if len(curves) > 1 else "tolerance"
        words = f"{curve.name}, {limit} {curve.limit:g}" if curve.limit else curve.off
        entries.append((swatch, words, 39.0 if curve.limit else 18.0))
    if any(value > high for curve in curves for value in curve.values(steps)):
        entries.append(('<path class="over structure" d="M0 3l4 -7l4 7z"/>', "above the scale", 8.0))
    return entries


def _plot(box: Box, records: list[StepRecord], curves: Sequence[_Curve]) -> list[str]:
    values = ticks(0, box.high, 5)
    parts = []
    for value, label in zip(values, plain(values), strict=True):
        y = n(box.y(value))
        parts.append(f'<path class="grid" d="M{n(box.left)} {y}H{n(box.right)}"/>')
        parts.append(f'<text class="muted end" x="{n(box.left - 7)}" y="{n(box.y(value) + 4)}">{label}</text>')
    for curve in curves:
        if 0 < curve.limit <= box.high:
            y = n(box.y(curve.limit))
            parts.append(f'<path class="tau {curve.style}" d="M{n(box.left)} {y}H{n(box.right)}"/>')
    for curve in curves:
        parts += _series(box, curve.style, [curve.of(record) for record in records])
    return parts


def _series(box: Box, stage: str, changes: list[float | None]) -> list[str]:
    """A stage's line, interrupted where nothing was measured, its points, and markers for values above the scale."""
    line, dots, over = "", "", ""
    before = False
    for index, change in enumerate(changes):
        if change is None or not math.isfinite(change):
            before = False
            continue
        x, y = box.x(index + 0.5), box.y(min(change, box.high))
        line += f"{'L' if before else 'M'}{n(x)} {n(y)}"
        before = True
        if change > box.high:
            over += f"M{n(x - 4)} {n(y + 5)}l4 -7l4 7z"
        else:
            dots += f"M{n(x)} {n(y)}h0"
    parts = [f'<path class="line {stage}" d="{line}"/>'] if "L" in line else []
    parts += [f'<path class="dots {stage}" d="{dots}"/>'] if dots else []
    return parts + ([f'<path class="over {stage}" d="{over}"/>'] if over else [])


def _strip(box: Box, records: list[StepRecord]) -> list[str]:
    bottom = box.bottom + _GAP + _STRIP
    parts = [
        f'<rect class="bed" x="{n(box.left)}" y="{n(bottom - _STRIP)}" width="{n(box.right - box.left)}" '
        f'height="{n(_STRIP)}"/>'
    ]
    cell = (box.right - box.left) / len(records)
    gap = min(1.5, cell / 5)
    for index, record in enumerate(records):
        high = max(_LEAST, _STRIP * record.blocks_run / record.blocks_total)
        parts.append(
            f'<rect class="{_CLASS[outcome_of(record)]}" data-step="{index}" x="{box.x(index) + gap / 2:.2f}" '
            f'y="{n(bottom - high)}" width="{cell - gap:.2f}" height="{n(high)}"/>'
        )
    return parts


def _axis(box: Box, count: int) -> list[str]:
    """Step numbers, from 1, as many as fit, including the first and the last."""
    most = max(2, int((box.right - box.left) / 36))
    numbers = [1, *(int(value) for value in ticks(1, count, most) if value == int(value))]
    room = 28 * count / (box.right - box.left)
    kept = [1]
    for number in numbers:
        if number - kept[-1] >= room and (count - number >= room or number == count):
            kept.append(number)
    if count not in kept and count - kept[-1] >= room:
        kept.append(count)
    y = n(box.bottom + _GAP + _STRIP + 15)
    return [f'<text class="muted mid" x="{n(box.x(number - 0.5))}" y="{y}">{number}</text>' for number in kept]


def _hits(box: Box, records: list[StepRecord], curves: Sequence[_Curve]) -> list[str]:
    """One invisible column per step, over both plots, with the step's figures as its title."""
    wide = n(box.x(1) - box.left)
    high = n(box.bottom - box.top + _GAP + _STRIP)
    parts = []
    for index, record in enumerate(records):
        digits = 3 if len(curves) > 1 else 4
        changes = "".join(f", {curve.name} {value:.{digits}f}" for curve in curves for value in curve.values([record]))
        blocks = f"{record.blocks_run:.3g} of {record.blocks_total:.3g} blocks"
        words = f"step {index + 1}: {outcome_of(record)}, {blocks}{changes}"
        parts.append(
            f'<rect class="hit" x="{n(box.x(index))}" y="{n(box.top)}" width="{wide}" height="{high}">'
            f"<title>{words}</title></rect>"
        )
    return parts


def _bars(steps: Sequence[StepRecord]) -> list[tuple[str, str, float]]:
    """The legend of the bars, drawn at their heights."""
    total = steps[0].blocks_total
    present = {outcome_of(record): record.blocks_run for record in steps}
    entries = [("", "blocks run:", -6.0)]
    for word, kind in _CLASS.items():
        if word in present:
            high = max(_LEAST, 12 * present[word] / total)
            swatch = f'<rect class="bed" y="-7" width="10" height="12"/><rect class="{kind}" y="{n(5 - high)}" '
            entries.append((f'{swatch}width="10" height="{n(high)}"/>', word, 10.0))
    return entries


def _description(steps: Sequence[StepRecord]) -> str:
    """The chart in a sentence, for screen readers."""
    words = [outcome_of(record) for record in steps]
    counts = ", ".join(f"{words.count(word)} {word}" for word in _CLASS if word in words)
    run, total = sum(record.blocks_run for record in steps), sum(record.blocks_total for record in steps)
    kinds = "passes" if len({record.context for record in steps}) > 1 else "steps"
    return f"Decisions of {len(steps)} {kinds}: {counts}; {percent(run / total)} of the blocks ran."
