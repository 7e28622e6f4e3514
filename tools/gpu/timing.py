"""Times whole runs by the clock, and each step on the device, in the same way with any cache or none."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from h2gen.cache import CacheConfig, h2_cache
from h2gen.cache.stopwatch import Stopwatch
from tools.gpu.model import Caller, wait
from tools.gpu.process import Report

Cache = Callable[[], AbstractContextManager[Any]]
"""Makes a context manager in which a cache is on."""

OUTCOMES = {
    "F": "full step, stages are {} elsewhere",
    "D": "detail {}",
    "C": "structure {}, detail computed",
    "R": "both {}",
    "S": "skipped: the velocity is forecast",
}
SHORT = "FFFDCRSFDCRSFDCRS"
"""A plan with every outcome, each after what it needs."""
ALIKE = "FFFFFF"
KEPT = 0.97
CHECKS = 0.003
SECONDS = 1.0
"""The aims: realised against ideal speed-up, the checks' share of a full step, and a whole picture's seconds."""


def planned(pipe: Any, plan: str, forecast: int = 1, cache_memory: str = "device") -> Cache:
    """H2-Cache on a pipeline, with a plan."""
    return lambda: h2_cache(pipe, CacheConfig(plan=plan, forecast=forecast, cache_memory=cache_memory))


def checking(pipe: Any) -> Cache:
    """H2-Cache on a pipeline, with thresholds that every change exceeds: all checks and no hit."""
    return lambda: h2_cache(pipe, CacheConfig(tau1=1e-30, tau2=1e-30))


def seconds_of(call: Caller, cache: Cache = nullcontext, steps: int | None = None) -> float:
    """Seconds of a whole run by the clock."""
    with cache():
        wait(call.scale)
        started = time.perf_counter()
        call(steps)
        wait(call.scale)
        return time.perf_counter() - started


def steps_of(call: Caller, cache: Cache = nullcontext, steps: int | None = None) -> list[float]:
    """Seconds of each step on the device: of the transformer and of all that a cache does before and after it."""
    watches: list[Stopwatch] = []
    transformer = call.pipe.transformer
    with cache():
        # After the cache's own hooks: the first hook before a pass, and the last one after it.
        handles = [
            transformer.register_forward_pre_hook(
                lambda *_: watches.append(Stopwatch(call.scale.device)), prepend=True
            ),
            transformer.register_forward_hook(lambda *_: watches[-1].stop()),
        ]
        try:
            call(steps)
        finally:
            for handle in handles:
                handle.remove()
    return [watch.seconds for watch in watches]


def measure_outcomes(call: Caller, report: Report) -> float:
    """Report the seconds of each outcome and the checks' share. Returns the seconds of a full step without a cache."""
    pipe, repeats = call.pipe, call.scale.repeats
    plain: list[float] = []
    checked: list[float] = []
    pairs: list[float] = []
    for _ in range(2 * repeats):
        without = steps_of(call, steps=len(ALIKE))[1:]
        with_checks = steps_of(call, checking(pipe), len(ALIKE))[1:]
        plain, checked = plain + without, checked + with_checks
        pairs += [more / less - 1 for less, more in zip(without, with_checks, strict=True)]
    full = statistics.median(plain)
    report("full step, no cache", full, "s", share=1.0)
    report("full step with both checks", statistics.median(checked), "s", share=statistics.median(checked) / full)
    report("the checks, of a full step", statistics.median(pairs), "%", most=CHECKS, timed=True)
    report("the same, quartiles", " to ".join(f"{100 * q:.2f} %" for q in statistics.quantiles(pairs)[::2]))
    for forecast, word in enumerate(("reused", "forecast")):
        by_letter: dict[str, list[float]] = defaultdict(list)
        for _ in range(repeats):
            steps = steps_of(call, planned(pipe, SHORT, forecast), len(SHORT))
            for letter, each in list(zip(SHORT, steps, strict=True))[2:]:
                by_letter[letter].append(each)
        for letter in OUTCOMES if forecast else "FDCR":
            seconds = statistics.median(by_letter[letter])
            report(f"in a plan: {OUTCOMES[letter].format(word)}", seconds, "s", share=seconds / full)
    return full


def measure_plans(call: Caller, report: Report, plans: dict[str, str], goal: float | None = None) -> None:
    """Report whole runs of plans against those without a cache, before and after them: realised and ideal speed-up.

    Args:
        plans: by name; as many letters as a whole run has steps, or more.
        goal: seconds that the fastest run may take.
    """
    uncached, steps = [seconds_of(call)], call.scale.steps
    report(f"{steps} steps, no cache", uncached[0], "s")
    cached: dict[str, float] = {}
    shares: dict[str, float] = {}
    for name, plan in plans.items():
        with h2_cache(call.pipe, CacheConfig(plan=plan[:steps], forecast=1)) as trace:
            cached[name] = seconds_of(call)
        shares[name] = 1 / trace.summary.estimated_speedup
    report(f"{steps} steps, the fastest run", min(cached.values()), "s", most=goal, timed=True)
    uncached.append(seconds_of(call))
    report(f"{steps} steps, no cache, once more", uncached[1], "s")
    for name in plans:
        compare(report, f"plan {name}", uncached, [cached[name]], shares[name])


def compare(
    report: Report,
    name: str,
    uncached: Sequence[float],
    cached: Sequence[float],
    share: float,
    aim: float | None = KEPT,
) -> None:
    """Report one cache's runs: seconds, speed-up, what its share of the blocks allows, and how much of it is kept."""
    seconds = statistics.median(cached)
    realised, ideal = statistics.median(uncached) / seconds, 1 / share
    report(f"{name}: the whole run", seconds, "s")
    report(f"{name}: realised speed-up", realised, "x")
    report(f"{name}: ideal, from the blocks that run", ideal, "x")
    report(f"{name}: realised / ideal", realised / ideal, least=aim, timed=True)


@contextmanager
def counted_graphs() -> Iterator[Callable[[], int]]:
    """Count the graphs that torch.compile makes within a ``with`` block."""
    from torch._dynamo.utils import counters

    before = int(counters["stats"]["unique_graphs"])
    yield lambda: int(counters["stats"]["unique_graphs"]) - before
