"""Results of a comparison: every figure of every method, and the statistics that they come from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from h2gen.cache.trace import StepRecord
from h2gen.evaluation.metrics import MetricInfo

VERSION = 1
IDENTICAL = 120.0
"""dB that an infinite PSNR counts as in a mean with finite ones: higher than with a single differing pixel."""


@dataclass(frozen=True)
class Case:
    """A prompt with a seed: one image or video that every method makes."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Timing:
    """Seconds of whole pipeline calls, with the device synchronised and the warm-up excluded."""

    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Score:
    """One metric of one method over all cases. ``worst_case`` is the index of the case with the worst value."""

    mean: float
    worst: float
    worst_case: int


@dataclass(frozen=True)
class Sample:
    """One image: a method on a case.

    Args:
        case: index of the case.
        picture: its path within the report's folder, or "" if there is no report.
        scores: metrics against the uncached image; PSNR is infinite if the two are identical.
        truth_scores: the same against the image of very many steps.
        seconds: of each timed run.
        share: blocks that ran, as a share of those of the uncached run.
        identical: whether every pixel is that of the uncached image.
        trace: H2-Cache's decisions.
    """

    case: int
    picture: str
    scores: Mapping[str, float]
    truth_scores: Mapping[str, float]
    seconds: tuple[float, ...]
    share: float
    identical: bool
    trace: tuple[StepRecord, ...] = ()


@dataclass(frozen=True)
class MethodResult:
    """A method and its figures.

    ``kind`` is ``reference``, ``h2``, ``steps``, ``solver``, ``peer`` or ``truth``. ``share`` counts blocks and
    ``seconds`` is wall time; neither is derived from the other. ``speedup`` is the reference's median time over this
    one's. ``pareto`` means that no other method is both faster by wall time and closer by the first fidelity metric.
    """

    name: str
    label: str
    kind: str
    detail: Mapping[str, Any]
    steps: int
    share: float
    seconds: Timing
    speedup: float
    scores: Mapping[str, Score]
    truth_scores: Mapping[str, Score]
    identical: int
    pareto: bool
    samples: tuple[Sample, ...]

    def mean(self, metric: MetricInfo, *, truth: bool = False) -> float:
        """Mean of a metric over the cases; NaN if it was not measured."""
        score = (self.truth_scores if truth else self.scores).get(metric.name)
        return math.nan if score is None else score.mean

    def closeness(self, metric: MetricInfo, *, truth: bool = False) -> float:
        """The mean with its sign changed if needed, so that more is always better."""
        value = self.mean(metric, truth=truth)
        return value if metric.higher_is_better else -value


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison. ``chosen`` names the method that the report and the contact sheet show first."""

    version: int
    made: str
    versions: Mapping[str, str]
    model: Mapping[str, str]
    settings: Mapping[str, Any]
    metrics: tuple[MetricInfo, ...]
    cases: tuple[Case, ...]
    methods: tuple[MethodResult, ...]
    notices: tuple[str, ...]
    chosen: str

    @property
    def noun(self) -> str:
        """What was compared, in words."""
        return "video" if "frames" in self.settings else "picture"

    @property
    def reference(self) -> MethodResult:
        return next(method for method in self.methods if method.kind == "reference")

    @property
    def fidelity_metric(self) -> MetricInfo | None:
        """The metric that the report leads with: the first that compares with the uncached image."""
        return next((metric for metric in self.metrics if metric.fidelity), None)

    def method(self, name: str) -> MethodResult:
        """The method of this name, which must be one of ``methods``."""
        return next(method for method in self.methods if method.name == name)

    def to_json(self) -> dict[str, Any]:
        """Plain objects and lists. JSON has no infinity: an infinite value is the text "inf", NaN is null."""
        whole = asdict(self)
        for method, plain in zip(self.methods, whole["methods"], strict=True):
            plain["shots"] = plain.pop("samples")
            for sample, fields in zip(method.samples, plain["shots"], strict=True):
                fields["trace"] = [step.to_json() for step in sample.trace]
        finite: dict[str, Any] = _finite(whole)
        return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def timing(seconds: Iterable[float]) -> Timing:
    """Median and range of some runs."""
    runs = list(seconds)
    return Timing(statistics.median(runs), min(runs), max(runs), len(runs))


def score(values: Sequence[float], higher_is_better: bool) -> Score:
    """Mean and worst value of a metric over the cases; NaN counts as the worst.

    The mean is infinite only if all values are: next to finite values an infinite one counts as ``IDENTICAL``.
    """

    def badness(index: int) -> float:
        value = values[index]
        return math.inf if math.isnan(value) else -value if higher_is_better else value

    worst = max(range(len(values)), key=badness)
    finite = values if all(map(math.isinf, values)) else [min(value, IDENTICAL) for value in values]
    mean = math.inf if any(map(math.isinf, finite)) else math.fsum(finite) / len(finite)
    return Score(mean, values[worst], worst)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points (cost, benefit) are Pareto-optimal: no other point is at least as good in both."""

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    return [not any(beats(other, point) for other in points) for point in points]


def best_of(methods: Sequence[MethodResult], metric: MetricInfo, *, truth: bool = False) -> set[str]:
    """Names of the Pareto-optimal methods: no other is at least as fast and as good, and better in one of the two."""
    values = [(method, method.closeness(metric, truth=truth)) for method in methods]
    rated = [(method, value) for method, value in values if not math.isnan(value)]
    best = pareto([(-method.speedup, value) for method, value in rated])
    return {method.name for (method, _), is_best in zip(rated, best, strict=True) if is_best}
