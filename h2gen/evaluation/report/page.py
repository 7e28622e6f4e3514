"""The report's HTML: fills the template, and prepares the data of its script."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from h2gen.evaluation.charts import STYLE, decisions_chart, pareto_chart
from h2gen.evaluation.charts.pareto import KINDS, truth_steps
from h2gen.evaluation.number_format import percent, reading, seconds, times
from h2gen.evaluation.recommend import cache_of
from h2gen.evaluation.report.embed import LOSSLESS, Embedded, Sheet, fitted, largest_side
from h2gen.evaluation.report.headline import headline_and_summary
from h2gen.evaluation.report.story import Story
from h2gen.evaluation.report.table import table
from h2gen.evaluation.results import Comparison, MethodResult, Sample
from h2gen.evaluation.videos import Shown, Video, webp_video
from h2gen.wording import printable

_HERE = Path(__file__).parent
_WIDE, _NARROW = 720.0, 340.0
"""Pixels that charts are drawn for: on a desktop, on a phone."""

Pictures = Mapping[tuple[str, int], Shown] | Path


def page(comparison: Comparison, pictures: Pictures, story: Story | None = None) -> str:
    """The whole page as HTML. ``pictures`` and ``story`` are as ``write_report`` takes them."""
    shown = _Shown(comparison, pictures)
    story = story or Story()
    headline, sentences = story.headline, story.sentences
    if not headline:
        headline, sentences = headline_and_summary(comparison)
    css, script = STYLE + _text("page.css"), _text("page.js")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = printable
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        noun=comparison.noun,
        story=story,
        headline=printable(headline),
        sentences=[printable(sentence) for sentence in sentences],
        css=Markup(css),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=script_json(shown.data),
        pictures=script_json(shown.embedded.uris),
        shown=shown,
        choices=_choices(comparison),
        charts=_charts(comparison),
        table=table(comparison),
        settings=_settings(comparison),
    )


def script_json(value: Any) -> Markup:
    """JSON that is safe inside ``<script type="application/json">``."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only, so U+2028 is escaped too
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


class _Shown:
    """All images, decisions and figures of the samples, as the script needs them."""

    def __init__(self, comparison: Comparison, pictures: Pictures) -> None:
        self._pictures = pictures
        self.width, self.height = int(comparison.settings["width"]), int(comparison.settings["height"])
        samples = sum(len(method.samples) for method in comparison.methods)
        whole, self.frames = (self.width, self.height), int(comparison.settings.get("frames", 0))
        self.fps = float(comparison.settings.get("fps", 0))
        self.sheet = Sheet.of(whole, self.frames, samples) if self.frames else None
        side = largest_side([whole] * samples)
        self.embedded = Embedded(side, self.sheet)
        self.size = fitted(whole, side) if self.sheet is None else self.sheet.size
        self.smaller = self.size != whole
        embedded = whole if self.sheet is None else self.sheet.whole
        self.lossless = not self.smaller and embedded[0] * embedded[1] <= LOSSLESS
        self._thumbnails: dict[int, int] = {}
        self._charts: list[tuple[str, str]] = []
        methods = [self._method(comparison, method) for method in comparison.methods]
        names = [method.name for method in comparison.methods]
        self.chosen = names.index(comparison.chosen)
        self.data = {
            "methods": methods,
            "cases": [
                {"prompt": printable(case.prompt), "seed": case.seed, "thumbnail": self._thumbnails.get(number, -1)}
                for number, case in enumerate(comparison.cases)
            ],
            "video": self._video,
            "charts": self._charts,
            "reference": names.index(comparison.reference.name),
            "chosen": self.chosen,
        }

    @property
    def _video(self) -> dict[str, Any] | None:
        """How the script plays videos; None for pictures."""
        if self.sheet is None:
            return None
        width, height = self.sheet.size
        return {
            "width": width,
            "height": height,
            "columns": self.sheet.columns,
            "frames": self.sheet.frames,
            "every": self.sheet.every,
            "whole": self.frames,
            "milliseconds": round(1000 * self.sheet.every / self.fps, 3),
        }

    def _method(self, comparison: Comparison, method: MethodResult) -> dict[str, Any]:
        samples: list[dict[str, Any] | None] = [None] * len(comparison.cases)
        for sample in method.samples:
            samples[sample.case] = self._sample(comparison, method, sample)
        return {
            "name": printable(method.name),
            "label": printable(method.label),
            "kind": method.kind,
            "kindWords": KINDS.get(method.kind, method.kind),
            "readings": [
                f"{times(method.speedup)}× as fast, {m.title} {reading(m, value)}"
                if not math.isnan(value := method.mean(m, truth=truth))
                else ""
                for m, truth in chart_metrics(comparison)
            ],
            "steps": method.steps,
            "shots": samples,
        }

    def _sample(self, comparison: Comparison, method: MethodResult, sample: Sample) -> dict[str, Any]:
        figures = [
            ["Time", seconds(statistics.median(sample.seconds)) if sample.seconds else "-"],
            ["Blocks run", percent(sample.share)],
        ]
        for metric in comparison.metrics:
            if metric.name in sample.scores and not (method.kind == "reference" and metric.fidelity):
                figures.append([printable(metric.title), reading(metric, sample.scores[metric.name])])
        picture = self._open(method, sample)
        path = quote(str(PurePosixPath(sample.picture))) if sample.picture else ""
        if method.kind == "reference" and isinstance(picture, Video):
            self._thumbnails[sample.case] = self.embedded.thumbnail(picture)
        return {
            "picture": -1 if picture is None else self.embedded.add(picture),
            "path": path,
            "figures": figures,
            "identical": sample.identical and method.kind != "reference",
            "chart": self._decisions(comparison, method, sample),
        }

    def _open(self, method: MethodResult, sample: Sample) -> Shown | None:
        if not isinstance(self._pictures, Path):
            return self._pictures.get((method.name, sample.case))
        path = self._pictures / sample.picture
        if not sample.picture or not path.is_file():
            return None
        if self.sheet is not None:
            return webp_video(path, self.fps)
        with Image.open(path) as picture:
            return picture.convert("RGB")

    def _decisions(self, comparison: Comparison, method: MethodResult, sample: Sample) -> int:
        """The index of the sample's chart of decisions; -1 if it has none."""
        if not sample.trace:
            return -1
        given: dict[str, Any] = {"standalone": False, "noun": comparison.noun}
        wide = decisions_chart(sample.trace, cache_of(method), width=_WIDE, **given)
        narrow = decisions_chart(sample.trace, cache_of(method), width=_NARROW, hover=False, **given)
        self._charts.append((wide, narrow))
        return len(self._charts) - 1


def chart_metrics(comparison: Comparison) -> list[tuple[Any, bool]]:
    """The metrics to chart, and whether each is against the truth."""
    plain = [(m, False) for m in comparison.metrics if any(m.name in method.scores for method in comparison.methods)]
    truth = [
        (m, True) for m in comparison.metrics if any(m.name in method.truth_scores for method in comparison.methods)
    ]
    return plain + truth


def _charts(comparison: Comparison) -> list[dict[str, Any]]:
    charts = []
    for metric, truth in chart_metrics(comparison):
        against = "truth" if truth else "reference"
        wide, narrow = (
            Markup(pareto_chart(comparison, metric, against=against, width=width, standalone=False))
            for width in (_WIDE, _NARROW)
        )
        title = f"{metric.title} to {truth_steps(comparison)} steps" if truth else metric.title
        charts.append({"title": printable(title), "wide": wide, "narrow": narrow})
    return charts


def _choices(comparison: Comparison) -> list[tuple[str, list[tuple[int, str]]]]:
    """The methods to choose from, by kind."""
    choices: list[tuple[str, list[tuple[int, str]]]] = []
    for kind, words in KINDS.items():
        methods = [(i, printable(m.label)) for i, m in enumerate(comparison.methods) if m.kind == kind]
        if methods and kind != "reference":
            choices.append((words, methods))
    return choices


def _settings(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of names and values for the page's footer."""

    def words(values: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [(printable(str(k)).replace("_", " "), printable(str(v)) or "none") for k, v in values.items()]

    measured = [(printable(metric.title), printable(metric.source)) for metric in comparison.metrics]
    groups = [("Model", words(comparison.model)), ("Settings", words(comparison.settings))]
    groups += [("Metrics", measured), ("Versions", words(comparison.versions))]
    return [(title, rows) for title, rows in groups if rows]


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
