"""Chooses what to compare a cache with: fewer steps that take as long, and other caches at equal cost.

The fewest-steps rival of a cached run, its baseline, is the number of uncached steps that takes as long
(``equal_steps``). Both searches make a few images.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from h2gen.cache.config import CacheConfig
from h2gen.errors import H2GenError, ModelError
from h2gen.evaluation import methods
from h2gen.evaluation.fit_budget import fit_to_budget
from h2gen.evaluation.make_image import ImageMaker
from h2gen.evaluation.methods import Method
from h2gen.evaluation.options import CompareObserver, MethodOptions
from h2gen.evaluation.peers import TOLERANCE, Peer, Value, find_equal_cost

_TIMED = 3
"""Runs of each method from which the number of steps that take as long is computed."""
PAPER = CacheConfig(0.15, 0.22)
"""The paper's thresholds, which are scaled together to meet a budget."""
_COUNTED = 8
"""Cases, at most, whose blocks are counted while searching a peer's setting."""


class BaselineSearch:
    """Finds the methods of a comparison. ``notices`` are lines for the reader.

    Args:
        maker: makes the images.
        options: what is compared.
        observer: receives progress events.
    """

    def __init__(self, maker: ImageMaker, options: MethodOptions, observer: CompareObserver) -> None:
        self._maker, self._options, self._observer = maker, options, observer
        self._steps = maker.settings.steps
        self.notices: list[str] = []

    def methods(self) -> list[Method]:
        """All methods, the reference first. Each has run once, so that no measured run is its first."""
        steps, options = self._steps, self._options
        plain = methods.reference(steps)
        cached = [methods.h2(cache, steps) for cache in options.caches]
        self._observer.began("Warming up")
        self._maker.make(replace(plain, steps=min(2, steps)), 0)
        self._observer.began("Timing a first picture of each method")
        cached = [method for method in cached if self._runs(method)]
        counts = set(options.fewer)
        if options.baselines and cached:
            seconds = self._times([plain, replace(plain, name="one", steps=1), *cached])
            for method in cached:
                counts |= equal_steps(seconds["uncached"], seconds["one"], seconds[method.name], steps)
        chosen = [plain, *cached, *options.methods]
        if steps in counts:
            self.notices.append(f"A cached run takes as long as all {steps} steps; no run of fewer steps does.")
        for count in sorted(counts - {steps}, reverse=True):
            chosen += self._in_steps(count)
        for budget in options.budgets:
            chosen += self._for_budget(budget)
        kinds = {method.kind for method in chosen}
        if "steps" in kinds and "solver" not in kinds:
            self.notices.append("UniPC is left out: the model's own scheduler does not support flow matching.")
        for peer in options.peers:
            chosen += self._at_equal_cost(peer, cached)
        if options.truth:
            chosen.append(methods.truth(steps))
        return list({method.name: method for method in chosen}.values())

    def _in_steps(self, count: int) -> Iterator[Method]:
        """Uncached runs of ``count`` steps: with the model's own solver, and with UniPC if it works with the model."""
        yield methods.fewer(count, self._steps)
        with suppress(ModelError):  # a scheduler that does not support flow matching; one notice is enough for that
            self._maker.make(methods.solver(min(2, count), self._steps), 0)
            yield methods.solver(count, self._steps)

    def _runs(self, method: Method) -> bool:
        try:
            self._maker.make(method, 0)
        except H2GenError as error:
            self.notices.append(f"{method.label} is left out: {error}")
            return False
        return True

    def _times(self, candidates: Sequence[Method]) -> dict[str, float]:
        """Median seconds of each method, run in turns."""
        times: dict[str, list[float]] = {method.name: [] for method in candidates}
        for run in range(_TIMED):
            for method in candidates:
                times[method.name].append(self._maker.make(method, run % len(self._maker.cases)).seconds)
        return {name: statistics.median(each) for name, each in times.items()}

    def _share(self, method: Method) -> float:
        """Share of the blocks that a method runs, on some of the cases."""
        cases = range(min(_COUNTED, len(self._maker.cases)))
        return statistics.fmean(self._maker.make(method, case).share for case in cases)

    def _for_budget(self, budget: float) -> Iterator[Method]:
        """The methods for a budget without h2gen's policies: fewer steps, also with UniPC, and the paper's cache."""
        steps = self._steps
        count = max(1, int(budget * steps + 1e-9))
        if count < steps:
            yield from self._in_steps(count)
        self._observer.began(f"Finding the paper's thresholds for {budget:.0%} of the blocks")
        found = fit_to_budget(PAPER, budget, lambda cache: self._share(methods.h2(cache, steps)), highest=8.0)
        if found is None:
            self.notices.append(f"The paper's cache cannot run as few as {budget:.0%} of the blocks.")
        else:
            yield methods.h2(found.cache, steps)

    def _at_equal_cost(self, peer: Peer, cached: Sequence[Method]) -> Iterator[Method]:
        """A peer at equal cost with each cached run; cached runs of nearly the same cost share one setting."""
        self._observer.began(f"Finding the setting of {peer.title} that costs as much")
        cases = range(min(_COUNTED, len(self._maker.cases)))

        def measure(one: Peer, value: Value) -> float:
            around = lambda pipe: one.applied(pipe, value, steps=self._steps, passes=self._maker.passes)  # noqa: E731
            return self._share(Method(one.name, one.title, "peer", self._steps, around=around))

        try:
            plain = methods.reference(self._steps)
            ready = peer.calibrated(self._maker.session.pipe, lambda: self._maker.make(plain, 0), steps=self._steps)
            for target in _distinct([*self._options.budgets, *(self._share(method) for method in cached)]):
                budget = target in self._options.budgets
                found = find_equal_cost(ready, target, measure, steps=self._steps, cases=len(cases), budget=budget)
                if not found.reached:
                    self.notices.append(
                        f"{peer.title} cannot run {target:.0%} of the blocks; the closest it gets is {found.share:.0%}."
                    )
                yield methods.peer(found, self._steps, self._maker.passes)
        except Exception as error:  # noqa: BLE001 - third-party code must not end the comparison
            self.notices.append(f"{peer.title} is left out: {str(error) or type(error).__name__}")
            return
        if peer.note:
            self.notices.append(f"{peer.title}: {peer.note}")


def equal_steps(whole: float, one: float, cached: float, steps: int) -> set[int]:
    """How many uncached steps take as long as a cached run: the nearest number, and the largest that is not slower.

    Args:
        whole: seconds of an uncached run of ``steps`` steps.
        one: seconds of an uncached run of one step: work outside the steps, such as decoding, is part of every run.
        cached: seconds of the cached run.
        steps: of the whole run.
    """
    if steps == 1 or whole <= one:
        return {steps}
    exact = 1 + (cached - one) * (steps - 1) / (whole - one)
    return {min(steps, max(1, count)) for count in (int(exact), round(exact))}


def _distinct(shares: Sequence[float]) -> list[float]:
    """Shares at least ``TOLERANCE`` apart; of closer ones, the first."""
    kept: list[float] = []
    for share in shares:
        if all(abs(share - other) >= TOLERANCE for other in kept):
            kept.append(share)
    return kept
