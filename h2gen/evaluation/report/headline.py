"""The report's headline and summary: the time saved, its price, and whether fewer steps do as well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from h2gen.evaluation.charts.pareto import truth_steps
from h2gen.evaluation.number_format import percent, reading, seconds, times
from h2gen.evaluation.recommend import SAVES
from h2gen.evaluation.results import IDENTICAL
from h2gen.evaluation.rivals import APART, same_time, steps_of_share

if TYPE_CHECKING:
    from h2gen.evaluation.metrics import MetricInfo
    from h2gen.evaluation.results import Comparison, MethodResult, Score

_AS_CLOSE = {"dB": 0.2, "": 0.002}
"""Differences of means that count as equal, by the metric's unit."""


def headline_and_summary(comparison: Comparison) -> tuple[str, list[str]]:
    """A headline and the sentences of one paragraph, about the chosen method."""
    chosen, reference = comparison.method(comparison.chosen), comparison.reference
    metric = comparison.fidelity_metric
    sentences = [_gain(chosen, reference, comparison.noun)]
    if metric is None or metric.name not in chosen.scores:
        return _headline(comparison, None, None), sentences
    sentences.append(_cost(comparison, chosen, metric))
    rival = _rival(comparison, chosen, metric)
    if chosen.kind not in ("steps", "solver", "reference", "truth"):
        sentences.append(_rivalry(comparison, chosen, metric))
    if chosen.kind != "reference" and metric.name in chosen.truth_scores and metric.name in reference.truth_scores:
        sentences.append(_truth(comparison, chosen, metric))
    sentences += _quality(comparison, chosen, reference)
    return _headline(comparison, rival, metric), sentences


def _saves(method: MethodResult) -> bool:
    return method.speedup > SAVES


def _headline(comparison: Comparison, rival: MethodResult | None, metric: MetricInfo | None) -> str:
    chosen = comparison.method(comparison.chosen)
    if chosen.kind == "reference":
        return f"The uncached {comparison.noun}s, and the methods measured against them"
    once = " in one timed run" if chosen.seconds.runs == 1 else ""
    if not _saves(chosen):
        return ("No time saved" if chosen.speedup > 0.98 else "Slower than without a cache") + once
    gain = f"{times(chosen.speedup)} times as fast{once}"
    if chosen.identical == len(chosen.samples):
        return f"{gain}, and identical"
    if rival is None or metric is None or chosen.kind in ("steps", "solver"):
        return gain
    margin = _margin(rival, chosen, metric)
    if margin > _worth(metric):
        return f"{gain}, but {'fewer steps are' if rival.kind == 'steps' else 'another solver is'} closer"
    return f"{gain}, {'closer than' if margin < -_worth(metric) else 'as close as'} fewer steps at that speed"


def _gain(chosen: MethodResult, reference: MethodResult, noun: str) -> str:
    ours, theirs = seconds(chosen.seconds.median), seconds(reference.seconds.median)
    start = f"{chosen.label} makes a {noun} in {ours}"
    blocks = f"running {percent(chosen.share)} of the blocks"
    if chosen.kind == "reference":
        return f"{chosen.label} makes a {noun} in {ours}."
    if not _saves(chosen):
        return f"{start}, {blocks}; without a cache it takes {theirs}, so no time is saved."
    apart = "" if chosen.seconds.high < reference.seconds.low else " (the timings' ranges overlap)"
    return f"{start} instead of {theirs}, {times(chosen.speedup)} times as fast{apart}, {blocks}."


def _cost(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> str:
    count, score, noun = len(chosen.samples), chosen.scores[metric.name], comparison.noun
    if chosen.kind == "reference":
        return "All other methods are measured against it."
    if chosen.identical == count:
        whole = f"Its {noun} is" if count == 1 else f"All its {count} {noun}s are"
        return f"{whole} identical to the uncached {'one' if count == 1 else 'ones'}, bit for bit."
    some = f"; {chosen.identical} of {count} are identical" if chosen.identical else ""
    if some and metric.unit == "dB":
        some += f" and count as {IDENTICAL:g} dB"
    if count == 1:
        value = reading(metric, score.mean)
        return f"Against the uncached {noun} its {metric.title} is {value}{_frames(comparison, chosen, metric)}."
    worst = comparison.cases[score.worst_case].prompt
    worst = worst if len(worst) <= 60 else worst[:57].rstrip() + "..."
    usual = reading(metric, chosen.mean(metric))
    return (
        f"Against the uncached {noun}s its {metric.title} is {usual} on average over {count}, "
        f"{reading(metric, score.worst)} at worst (\u201c{worst}\u201d){_frames(comparison, chosen, metric)}{some}."
    )


def _frames(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> str:
    """The worst frame of videos; empty for pictures."""
    info = next((info for info in comparison.metrics if info.name == f"{metric.name}-frame"), None)
    if info is None or info.name not in chosen.scores:
        return ""
    return f", and {reading(info, chosen.scores[info.name].worst)} in the worst frame"


def _rivals(comparison: Comparison, chosen: MethodResult, *kinds: str) -> list[MethodResult]:
    """Uncached runs of these kinds that take the chosen method's time, or less."""
    limit = APART * chosen.seconds.median
    return [method for method in comparison.methods if method.kind in kinds and method.seconds.median <= limit]


def _of_same_time(comparison: Comparison, chosen: MethodResult, *kinds: str) -> list[MethodResult]:
    ours = chosen.seconds.median
    return [method for method in _rivals(comparison, chosen, *kinds) if same_time(method.seconds.median, ours)]


def _best(methods: list[MethodResult], metric: MetricInfo) -> MethodResult | None:
    rated = [method for method in methods if not math.isnan(method.mean(metric))]
    return max(rated, key=lambda method: method.closeness(metric), default=None)


def _rival(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> MethodResult | None:
    """The closest uncached run with fewer steps in the chosen method's time.

    None if none takes that time and those that take less are not closer: they then prove nothing.
    """
    kinds = "steps", "solver"
    rival = _best(_rivals(comparison, chosen, *kinds), metric)
    if rival is None or _of_same_time(comparison, chosen, *kinds):
        return rival
    return rival if _margin(rival, chosen, metric) > _worth(metric) else None


def _margin(rival: MethodResult, chosen: MethodResult, metric: MetricInfo) -> float:
    """How much closer the rival is; negative if it is farther away."""
    pair = [method.closeness(metric) for method in (rival, chosen)]
    if all(math.isinf(value) for value in pair):
        return 0.0
    return pair[0] - pair[1]


def _worth(metric: MetricInfo) -> float:
    return _AS_CLOSE.get(metric.unit, 0.0)


def _rivalry(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> str:
    """How fewer steps compare: those that take the same time, that take less and are closer, that run as many blocks.

    Nothing is said to take the same time, or less, unless the medians do.
    """
    sentences = []
    same = [_best(_of_same_time(comparison, chosen, kind), metric) for kind in ("steps", "solver")]
    shown = [rival for rival in same if rival is not None]
    if shown:
        compared = "; ".join(_compared(rival, chosen, metric) for rival in shown)
        sentences.append(f"In the same time, {compared}.")
    else:
        sentences.append("No run with fewer steps took the same time.")
    rival = _rival(comparison, chosen, metric)
    if rival is not None and rival not in shown:
        shown.append(rival)
        sentences.append(f"In less time, {_compared(rival, chosen, metric)}.")
    count = steps_of_share(chosen.share, comparison.reference.steps)
    equal = next((m for m in comparison.methods if m.kind == "steps" and m.steps == count), None)
    if not any(method.kind == "steps" for method in shown) and equal is not None:
        sentences.append(f"With as many blocks, {_compared(equal, chosen, metric)}.")
    if rival is not None and _margin(rival, chosen, metric) > _worth(metric):
        sentences.append("Fewer steps are the better choice here.")
    return " ".join(sentences)


def _compared(rival: MethodResult, chosen: MethodResult, metric: MetricInfo) -> str:
    """``14 steps without a cache (0.890 s) are farther away: 28.1 dB``."""
    margin = _margin(rival, chosen, metric)
    verdict = "are closer" if margin > _worth(metric) else "are farther away"
    verdict = verdict if abs(margin) > _worth(metric) else "are as close"
    name = f"{rival.label} without a cache" if rival.kind == "steps" else rival.label
    return f"{name} ({seconds(rival.seconds.median)}) {verdict}: {reading(metric, rival.mean(metric))}"


def _truth(comparison: Comparison, chosen: MethodResult, metric: MetricInfo) -> str:
    pair = (chosen, comparison.reference)
    ours, theirs = (reading(metric, method.mean(metric, truth=True)) for method in pair)
    steps = truth_steps(comparison)
    noun = comparison.noun
    return f"Against the {noun} of {steps} steps its {metric.title} is {ours}; that of the uncached {noun} is {theirs}."


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
    return [f"Judged on their own, the {comparison.noun}s score {listed}."]
