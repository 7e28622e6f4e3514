"""The report's headline and summary: the time saved, its price, and whether fewer steps do as well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from h2gen.evaluation.charts.pareto import truth_steps
from h2gen.evaluation.number_format import percent, reading, seconds, times
from h2gen.evaluation.results import IDENTICAL

if TYPE_CHECKING:
    from h2gen.evaluation.metrics import MetricInfo
    from h2gen.evaluation.results import Comparison, MethodResult, Score

_SAME_TIME = 1.05
"""A rival that takes at most this many times as long counts as taking the same time."""
_AS_CLOSE = {"dB": 0.2, "": 0.002}
"""Differences of means that count as equal, by the metric's unit."""


def headline_and_summary(comparison: Comparison) -> tuple[str, list[str]]:
    """A headline and the sentences of one paragraph, about the chosen method."""
    chosen, reference = comparison.method(comparison.chosen), comparison.reference
    metric = comparison.fidelity_metric
    sentences = [_gain(chosen, reference)]
    if metric is None or metric.name not in chosen.scores:
        return _headline(chosen, None, None), sentences
    sentences.append(_cost(comparison, chosen, metric))
    rival = _rival(comparison, chosen, metric)
    if chosen.kind not in ("steps", "solver", "reference", "truth"):
        sentences.append(_rivalry(comparison, chosen, metric))
    if chosen.kind != "reference" and metric.name in chosen.truth_scores and metric.name in reference.truth_scores:
        sentences.append(_truth(comparison, chosen, metric))
    sentences += _quality(comparison, chosen, reference)
    return _headline(chosen, rival, metric), sentences


def _saves(method: MethodResult) -> bool:
    return method.speedup > 1.02


def _headline(chosen: MethodResult, rival: MethodResult | None, metric: MetricInfo | None) -> str:
    if chosen.kind == "reference":
        return "The uncached pictures, and the methods measured against them"
    if not _saves(chosen):
        return "No time saved" if chosen.speedup > 0.98 else "Slower than without a cache"
    gain = f"{times(chosen.speedup)} times as fast"
    if chosen.identical == len(chosen.samples):
        return f"{gain}, and identical"
    if rival is None or metric is None or chosen.kind in ("steps", "solver"):
        return gain
    margin = _margin(rival, chosen, metric)
    if margin > _worth(metric):
        return f"{gain}, but {'fewer steps are' if rival.kind == 'steps' else 'another solver is'} closer"
    return f"{gain}, closer than fewer steps" if margin < -_worth(metric) else f"{gain}, as close as fewer steps"


def _gain(chosen: MethodResult, reference: MethodResult) -> str:
    ours, theirs = seconds(chosen.seconds.median), seconds(reference.seconds.median)
    start = f"{chosen.label} makes a picture in {ours}"
    blocks = f"running {percent(chosen.share)} of the blocks"
    if chosen.kind == "reference":
        return f"{chosen.label} makes a picture in {ours}."
    if not _saves(chosen):
        return f"{start}, {blocks}; without a cache it takes {theirs}, so no time is saved."
    apart = "" if chosen.seconds.high < reference.seconds.low else " (the timings' ranges overlap)"
    return f"{start} instead of {theirs}, {times(chosen.speedup)} times as fast{apart}, {blocks}."


def _cost(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> str:
    count, score = len(chosen.samples), chosen.scores[metric.name]
    if chosen.kind == "reference":
        return "All other methods are measured against it."
    if chosen.identical == count:
        whole = "Its picture is" if count == 1 else f"All its {count} pictures are"
        return f"{whole} identical to the uncached {'one' if count == 1 else 'ones'}, bit for bit."
    some = f"; {chosen.identical} of {count} are identical" if chosen.identical else ""
    if some and metric.unit == "dB":
        some += f" and count as {IDENTICAL:g} dB"
    if count == 1:
        return f"Against the uncached picture its {metric.title} is {reading(metric, score.mean)}."
    worst = comparison.cases[score.worst_case].prompt
    worst = worst if len(worst) <= 60 else worst[:57].rstrip() + "..."
    usual = reading(metric, chosen.mean(metric))
    return (
        f"Against the uncached pictures its {metric.title} is {usual} on average over {count}, "
        f"{reading(metric, score.worst)} at worst (\u201c{worst}\u201d){some}."
    )


def _rivals(comparison: Comparison, chosen: MethodResult, kind: str) -> list[MethodResult]:
    """Uncached runs that take at most the chosen method's time."""
    limit = _SAME_TIME * chosen.seconds.median
    return [method for method in comparison.methods if method.kind == kind and method.seconds.median <= limit]


def _best(methods: list[MethodResult], metric: MetricInfo) -> MethodResult | None:
    rated = [method for method in methods if not math.isnan(method.mean(metric))]
    return max(rated, key=lambda method: method.closeness(metric), default=None)


def _rival(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> MethodResult | None:
    """The closest uncached run with fewer steps in the chosen method's time."""
    return _best([m for kind in ("steps", "solver") for m in _rivals(comparison, chosen, kind)], metric)


def _margin(rival: MethodResult, chosen: MethodResult, metric: MetricInfo) -> float:
    """How much closer the rival is; negative if it is farther away."""
    pair = [method.closeness(metric) for method in (rival, chosen)]
    if all(math.isinf(value) for value in pair):
        return 0.0
    return pair[0] - pair[1]


def _worth(metric: MetricInfo) -> float:
    return _AS_CLOSE.get(metric.unit, 0.0)


def _rivalry(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> str:
    """How each kind of fewer steps compares."""
    words = []
    best_margin = -math.inf
    for kind in ("steps", "solver"):
        rival = _best(_rivals(comparison, chosen, kind), metric)
        if rival is None:
            continue
        margin = _margin(rival, chosen, metric)
        best_margin = max(best_margin, margin)
        verdict = "are closer" if margin > _worth(metric) else "are farther away"
        verdict = verdict if abs(margin) > _worth(metric) else "are as close"
        value = reading(metric, rival.mean(metric))
        name = f"{rival.label} without a cache" if kind == "steps" else rival.label
        words.append(f"{name} ({seconds(rival.seconds.median)}) {verdict}: {value}")
    if not words:
        return "No run with fewer steps took as little time."
    advice = ""
    if best_margin > _worth(metric):
        advice = " Fewer steps are the better choice here."
    return f"In the same time, {'; '.join(words)}.{advice}"


def _truth(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> str:
    pair = (chosen, comparison.reference)
    ours, theirs = (reading(metric, method.mean(metric, truth=True)) for method in pair)
    steps = truth_steps(comparison)
    return (
        f"Against the picture of {steps} steps its {metric.title} is {ours}; that of the uncached picture is {theirs}."
    )


def _quality(comparison: Comparison, chosen: MethodResult, reference: MethodResult) -> list[str]:
    """The metrics that need no reference, in one sentence."""

    def pair(metric: MetricInfo, scores: Mapping[str, Score], others: Mapping[str, Score]) -> str:
        ours, theirs = (reading(metric, found[metric.name].mean) for found in (scores, others))
        return f"{metric.title} {ours} (uncached {theirs})"

    judges = [metric for metric in comparison.metrics if not metric.fidelity]
    found = [metric for metric in judges if metric.name in chosen.scores and metric.name in reference.scores]
    if not found or chosen.kind == "reference":
        return []
    listed = ", ".join(pair(metric, chosen.scores, reference.scores) for metric in found)
    return [f"Judged on their own, the pictures score {listed}."]
