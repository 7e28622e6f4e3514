"""Writes the contact sheet and charts of a comparison: images side by side, the decisions, and all methods."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from h2gen.evaluation.charts import decisions_chart, pareto_chart
from h2gen.evaluation.contact_sheet import Panel, contact_sheet, difference_panel
from h2gen.evaluation.number_format import percent, reading, seconds
from h2gen.evaluation.recommend import cache_of
from h2gen.evaluation.results import Comparison, MethodResult
from h2gen.output.save import encode, keep, slug

_FEW = 4
"""With at most this many methods a chart would say no more than the table."""


def save_images(comparison: Comparison, images: Mapping[str, Image.Image], folder: Path) -> Iterator[Path]:
    """Write the first case's images side by side, a chart of its decisions and, for many methods, a chart of them.

    Args:
        comparison: what was measured.
        images: of the first case, by method name.
        folder: where to write.

    Yields:
        Each file's path, once it is written.

    Raises:
        RunError: a file could not be written there; it is then in the temporary folder, and the message says so.
    """
    chosen, plain = comparison.method(comparison.chosen), comparison.reference
    case = comparison.cases[0]
    stem = f"{slug(case.prompt)}-{case.seed}"
    above = [_panel(comparison, method, images[method.name]) for method in (plain, chosen)]
    above.append(difference_panel(images[plain.name], images[chosen.name]))
    others = [
        min(rivals, key=lambda method: abs(method.seconds.median - chosen.seconds.median))
        for kind in ("steps", "solver")
        if (rivals := [method for method in comparison.methods if method.kind == kind])
    ]
    below = [_panel(comparison, method, images[method.name]) for method in others]
    sheet = contact_sheet([above, below] if below else [above])
    yield keep(encode(sheet, "png"), folder, f"{stem}-compare", "png")
    steps = chosen.samples[0].trace
    if steps:
        chart = decisions_chart(steps, cache_of(chosen), width=720.0)
        yield keep(chart.encode(), folder, f"{stem}-decisions", "svg")
    metric = comparison.fidelity_metric
    if metric is not None and len(comparison.methods) > _FEW:
        chart = pareto_chart(comparison, metric, width=720.0)
        yield keep(chart.encode(), folder, f"{stem}-methods", "svg")


def _panel(comparison: Comparison, method: MethodResult, image: Image.Image) -> Panel:
    """An image with its figures."""
    sample = method.samples[0]
    lines = [f"{seconds(statistics.median(sample.seconds))}, {percent(sample.share)} of the blocks"]
    if method.kind != "reference":
        close = [metric for metric in comparison.metrics if metric.fidelity and metric.name in sample.scores]
        lines.append(", ".join(f"{metric.title} {reading(metric, sample.scores[metric.name])}" for metric in close))
    return Panel(image, method.label, lines)
