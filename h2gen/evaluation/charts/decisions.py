"""What was decided at each step: both stages' changes against their thresholds, and what became of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from h2gen.cache.config import CacheConfig
from h2gen.cache.trace import StepRecord
from h2gen.evaluation.charts.svg import Box, document, legend, n, plain, ticks
from h2gen.evaluation.figures import percent

_STRIP = 30.0
_GAP = 9.0
_LEAST = 3.0
"""Pixels that the blocks of a step are drawn high at least: 2 of 57 would not be seen."""
_HIGHEST = 4.0
"""A change above so many times the larger threshold is drawn at the upper edge; one as far above is left out."""

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
    """Numbers that steps were decided by, and what they were held against; ``off`` says why nothing is."""

    style: str
    name: str
    limit: float
    off: str
    of: Callable[[StepRecord], float | None]

    def values(self, steps: Iterable[StepRecord]) -> list[float]:
        """Those that are finite."""
        found = (self.of(record) for record in steps)
        return [value for value in found if value is not None and math.isfinite(value)]


def _curves(cache: CacheConfig) -> list[_Curve]:
    if cache.plan:
        return []
    if cache.tolerance and not (cache.tau1 or cache.tau2):
        return [_Curve("structure", "error if skipped", cache.tolerance, "", lambda record: record.error)]
    detail_off = "detail, reused along with structure only"
    return [
        _Curve("structure", "structure", cache.tau1, "structure, never reused", lambda record: record.structure.change),
        _Curve("detail", "detail", cache.tau2, detail_off, lambda record: record.detail.change),
    ]


_PASSES = {"cond": "Pass with the prompt", "uncond": "Pass with the negative prompt"}


def outcome_of(record: StepRecord) -> str:
    """A step's outcome in a word: full, guarded, detail reused, structure reused, all reused, skipped."""
    if record.skipped:
        return "skipped"
    if record.structure_reused:
        return "structure reused"
    if record.all_reused:
        return "all reused"
    if not record.full:
        return "detail reused"
    return "guarded" if record.guarded else "full"


def decisions_chart(
    steps: Sequence[StepRecord],
    cache: CacheConfig,
    *,
    width: float = 520.0,
    standalone: bool = True,
    hover: bool = True,
) -> str:
    """Draw one picture's steps as SVG.

    Above, the relative change of each stage since its last computed step, and its threshold, dashed; a line has a gap
    where nothing was measured: at a guarded step, at a first step, and for the detail stage where it was reused along
    with the structure. Of a tolerance alone it is the error of skipping the step that is drawn. Below, a bar a step as
    high as the blocks that ran, coloured by outcome. With true guidance
    there is a plot for each of the two passes.

    Args:
        steps: one picture's records, in order; at least one.
        cache: the thresholds that they were decided with.
        width: pixels; text keeps its size, so give what the chart will be shown at (350 to 900).
        standalone: with colours of its own, for light and dark, and a ground; otherwise the page holds ``STYLE``.
        hover: say each step's figures when pointed at.

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
            measured = "how far off the picture would be, in sigma times the velocity"
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
    """The number at the plot's upper edge."""
    largest = max([0.0, *(value for curve in curves for value in curve.values(steps))])
    # A limit far above every number is no scale for them; a number far above the limits is none for the rest.
    limits = [curve.limit for curve in curves if 0 < curve.limit <= _HIGHEST * largest]
    top = max(*limits, min(largest, _HIGHEST * max(limits))) if limits else largest
    return 1.06 * top or 1.0


def _lines(steps: Sequence[StepRecord], curves: Sequence[_Curve], high: float) -> list[tuple[str, str, float]]:
    """The legend of the plot."""
    entries = []
    if not curves:
        return [("", "decided beforehand by a plan: nothing was measured", -6.0)]
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
    """A stage's line, broken where nothing was measured, its points, and what lies above the scale."""
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
    """Numbers of steps, from 1, as many as there is room for; the first and the last among them."""
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
    """A column a step, over plot and strip, that tells the step's figures."""
    wide = n(box.x(1) - box.left)
    high = n(box.bottom - box.top + _GAP + _STRIP)
    parts = []
    for index, record in enumerate(records):
        digits = 3 if len(curves) > 1 else 4
        changes = "".join(f", {curve.name} {value:.{digits}f}" for curve in curves for value in curve.values([record]))
        words = f"step {index + 1}: {outcome_of(record)}, {record.blocks_run} of {record.blocks_total} blocks{changes}"
        parts.append(
            f'<rect class="hit" x="{n(box.x(index))}" y="{n(box.top)}" width="{wide}" height="{high}">'
            f"<title>{words}</title></rect>"
        )
    return parts


def _bars(steps: Sequence[StepRecord]) -> list[tuple[str, str, float]]:
    """The legend of the strip, with how high its bars are."""
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
    """The chart in a sentence, for those who hear it."""
    words = [outcome_of(record) for record in steps]
    counts = ", ".join(f"{words.count(word)} {word}" for word in _CLASS if word in words)
    run, total = sum(record.blocks_run for record in steps), sum(record.blocks_total for record in steps)
    kinds = "passes" if len({record.context for record in steps}) > 1 else "steps"
    return f"Decisions of {len(steps)} {kinds}: {counts}; {percent(run / total)} of the blocks ran."
