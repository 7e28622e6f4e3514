"""Writes the contact sheet and charts of a comparison: images side by side, the decisions, and all methods."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from h2gen.evaluation.charts import decisions_chart, pareto_chart
from h2gen.evaluation.contact_sheet import Panel, amplification, contact_sheet, difference_panel
from h2gen.evaluation.number_format import percent, reading, seconds
from h2gen.evaluation.recommend import cache_of
from h2gen.evaluation.results import Comparison, MethodResult
from h2gen.evaluation.videos import Shown, Video
from h2gen.output.save import encode, keep, slug
from h2gen.output.video_file import mp4_or_webp

_ON_PANELS = {"psnr", "ssim", "lpips"}
"""The metrics that stand beneath an image."""
_FEW = 4
"""With at most this many methods a chart would say no more than the table."""


def save_images(comparison: Comparison, images: Mapping[str, Shown], folder: Path) -> Iterator[Path]:
    """Write what the methods made of the first case side by side, a chart of its decisions and, for many methods, a
    chart of them.

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
    others = [
        min(rivals, key=lambda method: abs(method.seconds.median - chosen.seconds.median))
        for kind in ("steps", "solver")
        if (rivals := [method for method in comparison.methods if method.kind == kind])
    ]
    data, format = _side_by_side(comparison, [(method, images[method.name]) for method in (plain, chosen, *others)])
    yield keep(data, folder, f"{stem}-compare", format)
    steps = chosen.samples[0].trace
    if steps:
        chart = decisions_chart(steps, cache_of(chosen), width=720.0, noun=comparison.noun)
        yield keep(chart.encode(), folder, f"{stem}-decisions", "svg")
    metric = comparison.fidelity_metric
    if metric is not None and len(comparison.methods) > _FEW:
        chart = pareto_chart(comparison, metric, width=720.0)
        yield keep(chart.encode(), folder, f"{stem}-methods", "svg")


def _side_by_side(comparison: Comparison, made: Sequence[tuple[MethodResult, Shown]]) -> tuple[bytes, str]:
    """A file of the first two methods and their difference, with the others beneath, and its format."""
    panels = [_panel(comparison, method) for method, _ in made]

    def sheet(pictures: Sequence[Image.Image], factor: int | None = None) -> Image.Image:
        above, below = pictures[:2], pictures[2:]
        rows = [[panel(picture) for panel, picture in zip(panels, above, strict=False)]]
        rows[0].append(difference_panel(above[0], above[1], factor))
        rows += [[panel(picture) for panel, picture in zip(panels[2:], below, strict=True)]] if below else []
        return contact_sheet(rows)

    pictures = [image for _, image in made if not isinstance(image, Video)]
    if pictures:
        return encode(sheet(pictures), "png"), "png"
    videos = [image for _, image in made if isinstance(image, Video)]
    factor = amplification(zip(videos[0].pictures, videos[1].pictures, strict=True))  # the same for all frames
    size = sheet([video.picture(0) for video in videos], factor).size
    frames = np.empty((len(videos[0].frames), size[1], size[0], 3), np.uint8)
    for number, together in enumerate(zip(*(video.pictures for video in videos), strict=True)):
        frames[number] = np.asarray(sheet(together, factor))  # one at a time: they are several times as large as videos
    return mp4_or_webp(frames, videos[0].fps)


def _panel(comparison: Comparison, method: MethodResult) -> Callable[[Image.Image], Panel]:
    """Puts a method's figures on its image of the first case, or on a frame of its video."""
    sample = method.samples[0]
    lines = [f"{seconds(statistics.median(sample.seconds))}, {percent(sample.share)} of the blocks"]
    if method.kind != "reference":
        close = [metric for metric in comparison.metrics if metric.name in _ON_PANELS & sample.scores.keys()]
        lines.append(", ".join(f"{metric.title} {reading(metric, sample.scores[metric.name])}" for metric in close))
    return lambda image: Panel(image, method.label, lines)
