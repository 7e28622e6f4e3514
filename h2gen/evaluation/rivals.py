"""How many uncached steps a cached run is compared with, and whether timings can be believed: figures, no clocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

from h2gen.evaluation.number_format import percent, seconds, times
from h2gen.evaluation.results import MethodResult
from h2gen.models.choices import evaluations

APART = 1.1
"""Two median times that differ by at most this factor count as the same time."""
_NOISE = 1.05
"""A run may take this many times as long as one of more steps before the timings are doubted."""


def same_time(one: float, other: float) -> bool:
    """Whether two median times count as the same."""
    return max(one, other) <= APART * min(one, other)


def steps_of_share(share: float, steps: int) -> int:
    """The number of uncached steps that run as many blocks as a share of those of ``steps`` steps."""
    return min(steps, max(1, round(share * steps)))


def steps_within(budget: float, steps: int, solver: str, over: float) -> list[int]:
    """The numbers of a solver's steps just below and just above a budget, if they do not exceed it by too much.

    Args:
        budget: share of the blocks that ``steps`` steps of the model's own solver run.
        steps: of the uncached run; only fewer are returned.
        solver: as in ``SOLVERS``; Heun computes twice per step.
        over: by how much a number may exceed the budget, as a share.
    """
    shares = {count: evaluations(count, solver) / steps for count in range(1, steps)}
    below = [count for count, share in shares.items() if share <= budget + 1e-9][-1:]
    above = [count for count, share in shares.items() if budget + 1e-9 < share][:1]
    return below + [count for count in above if shares[count] <= budget + over]


def steps_of_time(plain: Mapping[int, float], cached: float) -> int | None:
    """The number of uncached steps that should take as long as a cached run, read off the runs around it.

    Args:
        plain: median seconds of uncached runs, by their steps.
        cached: median seconds of the cached run.

    Returns:
        None if it takes longer than every uncached run.
    """
    over = [(time, steps) for steps, time in plain.items() if time > cached]
    if not over:
        return None
    above, more = min(over)
    below, fewer = max(((time, steps) for steps, time in plain.items() if time <= cached), default=(0.0, 0))
    return max(1, round(fewer + (cached - below) / (above - below) * (more - fewer)))


def without_rival(results: Sequence[MethodResult]) -> list[MethodResult]:
    """H2-Cache's runs that no uncached run matches in time, by the medians so far."""
    times = _plain(results).values()
    cached = [result for result in results if result.kind == "h2"]
    return [result for result in cached if not any(same_time(time, result.seconds.median) for time in times)]


def missing_rivals(results: Sequence[MethodResult]) -> list[int]:
    """Numbers of uncached steps that must still be measured, the largest first.

    Each of H2-Cache's runs needs a rival that runs as many blocks, and one that takes as long.
    """
    plain = _plain(results)
    whole = next(result.steps for result in results if result.kind == "reference")
    wanted = {steps_of_share(result.share, whole) for result in results if result.kind == "h2"}
    wanted |= {steps_of_time(plain, result.seconds.median) or whole for result in without_rival(results)}
    return sorted(wanted - plain.keys(), reverse=True)


def _plain(results: Sequence[MethodResult]) -> dict[int, float]:
    """Median seconds of the uncached runs with the model's own solver, by their steps."""
    return {result.steps: result.seconds.median for result in results if result.kind in ("reference", "steps")}


def timing_doubts(results: Sequence[MethodResult]) -> Iterator[str]:
    """A line if fewer steps took longer, or a run is faster than its blocks allow: the machine was then busy."""
    reasons = []
    groups = [[r for r in results if r.kind in kinds] for kinds in (("reference", "steps"), ("solver",))]
    pairs = [
        (few, many)
        for group in groups
        for few, many in permutations(group, 2)
        if few.share < many.share and few.seconds.median > _NOISE * many.seconds.median
    ]
    if pairs:
        few, many = max(pairs, key=lambda pair: pair[0].seconds.median / pair[1].seconds.median)
        reasons.append(
            f"{few.label} took {seconds(few.seconds.median)} and {many.label} {seconds(many.seconds.median)}"
        )
    saving = [r for r in results if r.kind in ("h2", "steps", "solver") and r.share * r.speedup > APART]
    if saving:
        worst = max(saving, key=lambda result: result.share * result.speedup)
        reasons.append(
            f"{worst.label} ran {times(worst.speedup)} times as fast, more than {percent(worst.share)} of the blocks "
            f"allow ({times(1 / worst.share)})"
        )
    if reasons:
        yield (
            f"The timings contradict each other: {'; '.join(reasons)}. The machine was probably busy; go by the "
            "blocks, or repeat on an idle machine."
        )
