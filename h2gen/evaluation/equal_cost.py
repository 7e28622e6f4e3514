"""Which methods are compared: how many plain steps take as long as a cached run, and which setting of a peer costs as
much, are found out by making a few pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from h2gen.cache.config import CacheConfig
from h2gen.errors import H2GenError, ModelError
from h2gen.evaluation import methods
from h2gen.evaluation.make_image import ImageMaker
from h2gen.evaluation.methods import Method
from h2gen.evaluation.options import CompareObserver, CompareOptions
from h2gen.evaluation.peers import Peer, Value, settle
from h2gen.evaluation.tune.adaptive import fitted

_TIMED = 3
"""Runs of each whose times decide how many plain steps take as long."""
PAPER = CacheConfig(0.15, 0.22)
"""Its thresholds are raised and lowered together."""
_COUNTED = 8
"""Cases, at most, whose blocks are counted to find a peer's setting."""


class Choosing:
    """Finds the methods of a comparison. ``notices`` are what its reader should know of them.

    Args:
        maker: of the pictures.
        wishes: what is to be compared.
        watcher: is told how it goes on.
    """

    def __init__(self, maker: ImageMaker, wishes: CompareOptions, watcher: CompareObserver) -> None:
        self._maker, self._wishes, self._watcher = maker, wishes, watcher
        self._steps = maker.settings.steps
        self.notices: list[str] = []

    def methods(self) -> list[Method]:
        """All of them, the reference first; each has run once, so that nothing runs for the first time later."""
        steps, wishes = self._steps, self._wishes
        plain = methods.reference(steps)
        cached = [methods.h2(cache, steps) for cache in wishes.caches]
        self._watcher.began("Warming up")
        self._maker.make(replace(plain, steps=min(2, steps)), 0)
        self._watcher.began("Timing a first picture of each")
        cached = [method for method in cached if self._runs(method)]
        counts = set(wishes.fewer)
        if wishes.baselines and cached:
            seconds = self._times([plain, replace(plain, name="one", steps=1), *cached])
            for method in cached:
                counts |= equal_steps(seconds["uncached"], seconds["one"], seconds[method.name], steps)
        chosen = [plain, *cached, *wishes.methods]
        if steps in counts:
            self.notices.append(f"A cached run takes as long as all {steps} steps: for it there are no fewer.")
        for count in sorted(counts - {steps}, reverse=True):
            chosen += self._in_steps(count)
        for budget in wishes.budgets:
            chosen += self._for_budget(budget)
        kinds = {method.kind for method in chosen}
        if "steps" in kinds and "solver" not in kinds:
            self.notices.append("UniPC is left out: the model's own scheduler is none for flow matching.")
        for peer in wishes.peers:
            chosen += self._settled(peer, cached)
        if wishes.truth:
            chosen.append(methods.truth(steps))
        return list({method.name: method for method in chosen}.values())

    def _in_steps(self, count: int) -> Iterator[Method]:
        """Plain runs of so many steps: with the model's own solver, and with UniPC where it works with the model."""
        yield methods.fewer(count, self._steps)
        with suppress(ModelError):  # a scheduler that is none of flows, which one notice is enough for
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
        """Median seconds of each, in turn."""
        times: dict[str, list[float]] = {method.name: [] for method in candidates}
        for run in range(_TIMED):
            for method in candidates:
                times[method.name].append(self._maker.make(method, run % len(self._maker.cases)).seconds)
        return {name: statistics.median(each) for name, each in times.items()}

    def _share(self, method: Method) -> float:
        """Of the blocks that a method runs, on some of the cases."""
        cases = range(min(_COUNTED, len(self._maker.cases)))
        return statistics.fmean(self._maker.make(method, case).share for case in cases)

    def _for_budget(self, budget: float) -> Iterator[Method]:
        """What a budget buys without anybody's policies: fewer steps, of a better solver too, and the paper's cache."""
        steps = self._steps
        count = max(1, int(budget * steps + 1e-9))
        if count < steps:
            yield from self._in_steps(count)
        self._watcher.began(f"Finding the paper's thresholds for {budget:.0%} of the blocks")
        found = fitted(PAPER, budget, lambda cache: self._share(methods.h2(cache, steps)), highest=8.0)
        if found is None:
            self.notices.append(f"The paper's cache does not come down to {budget:.0%} of the blocks.")
        else:
            yield methods.h2(found.cache, steps)

    def _settled(self, peer: Peer, cached: Sequence[Method]) -> Iterator[Method]:
        """A peer at equal cost with each cached run; cached runs that cost nearly the same share one."""
        self._watcher.began(f"Finding the setting of {peer.title} that costs as much")
        cases = range(min(_COUNTED, len(self._maker.cases)))

        def measure(one: Peer, value: Value) -> float:
            around = lambda pipe: one.applied(pipe, value, steps=self._steps, passes=self._maker.passes)  # noqa: E731
            return self._share(Method(one.name, one.title, "peer", self._steps, around=around))

        try:
            plain = methods.reference(self._steps)
            ready = peer.calibrated(self._maker.session.pipe, lambda: self._maker.make(plain, 0), steps=self._steps)
            for target in _apart([*self._wishes.budgets, *(self._share(method) for method in cached)]):
                budget = target in self._wishes.budgets
                found = settle(ready, target, measure, steps=self._steps, cases=len(cases), budget=budget)
                if not found.reached:
                    self.notices.append(
                        f"{peer.title} does not come nearer to {target:.0%} of the blocks than {found.share:.0%}."
                    )
                yield methods.peer(found, self._steps, self._maker.passes)
        except Exception as error:  # noqa: BLE001 - somebody else's code; the others are still to be compared
            self.notices.append(f"{peer.title} is left out: {str(error) or type(error).__name__}")
            return
        if peer.note:
            self.notices.append(f"{peer.title}: {peer.note}")


def equal_steps(whole: float, one: float, cached: float, steps: int) -> set[int]:
    """How many plain steps take as long as a cached run: the nearest number, and the largest that takes no longer.

    Args:
        whole: seconds of a plain run of ``steps`` steps.
        one: seconds of a plain run of one step: what is no step, such as decoding, is in each run.
        cached: seconds of the cached run.
        steps: of the whole run.
    """
    if steps == 1 or whole <= one:
        return {steps}
    exact = 1 + (cached - one) * (steps - 1) / (whole - one)
    return {min(steps, max(1, count)) for count in (int(exact), round(exact))}


def _apart(shares: Sequence[float]) -> list[float]:
    """Shares that differ by 2 % of all blocks or more; of those that do not, the first."""
    kept: list[float] = []
    for share in shares:
        if all(abs(share - other) >= 0.02 for other in kept):
            kept.append(share)
    return kept
