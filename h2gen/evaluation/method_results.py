"""Turns the samples of a comparison into figures per method: median time, speed-up, scores, and Pareto-optimality."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from h2gen.evaluation.methods import Method
from h2gen.evaluation.metrics import MetricInfo
from h2gen.evaluation.peers import TOLERANCE
from h2gen.evaluation.results import MethodResult, Sample, Score, best_of, score, timing
from h2gen.evaluation.rivals import timing_doubts


@dataclass
class Tally:
    """The samples of one method so far, in the order of the cases."""

    method: Method
    samples: list[Sample] = field(default_factory=list)


def method_results(tallies: Sequence[Tally], finished: int, metrics: Sequence[MetricInfo]) -> list[MethodResult]:
    """The figures of each method over the first ``finished`` cases; the first tally is the reference's."""
    plain = timing(second for sample in tallies[0].samples[:finished] for second in sample.seconds)
    results = []
    for tally in tallies:
        samples = tuple(tally.samples[:finished])
        seconds = timing(second for sample in samples for second in sample.seconds)
        results.append(
            MethodResult(
                name=tally.method.name,
                label=tally.method.label,
                kind=tally.method.kind,
                detail=tally.method.detail,
                steps=tally.method.steps,
                share=statistics.fmean(sample.share for sample in samples),
                seconds=seconds,
                speedup=plain.median / seconds.median,
                scores=_scores([sample.scores for sample in samples], metrics),
                truth_scores=_scores([sample.truth_scores for sample in samples], metrics),
                identical=sum(sample.identical for sample in samples),
                pareto=False,
                samples=samples,
            )
        )
    first = next((info for info in metrics if info.fidelity), metrics[0])
    best = best_of(results, first)
    return [replace(result, pareto=result.name in best) for result in results]


def _scores(samples: Sequence[Mapping[str, float]], metrics: Sequence[MetricInfo]) -> dict[str, Score]:
    return {
        info.name: score([scores[info.name] for scores in samples], info.higher_is_better)
        for info in metrics
        if all(info.name in scores for scores in samples)
    }


def remarks(
    results: Sequence[MethodResult], finished: int, cases: int, lacking: Sequence[Method] = (), noun: str = "picture"
) -> list[str]:
    """Notices that follow from the figures: doubtful timings, peers at another cost, cases and methods missing."""
    found = list(timing_doubts(results))
    shares = [result.share for result in results if result.kind == "h2"]
    for result in results:
        off = min((result.share - share for share in shares), key=abs, default=0.0)
        if result.kind == "peer" and abs(off) > TOLERANCE:
            found.append(f"{result.label} runs {result.share:.1%} of the blocks, {off:+.1%} from H2-Cache's.")
    if finished < cases:
        found.append(f"Stopped after {finished} of {cases} {noun}s per method.")
    if lacking:
        found.append(f"Stopped before these were measured: {'; '.join(method.label for method in lacking)}.")
    return found
