"""Chooses what to compare a cache with: fewer steps that run as many blocks, and other caches at equal cost.

Runs of fewer steps that take as long are chosen later, by measured medians: see ``rivals``.
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
from h2gen.evaluation.rivals import steps_of_share

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
        shares = [(method, share) for method in cached if (share := self._share_of(method)) is not None]
        cached = [method for method, _ in shares]
        counts = set(options.fewer)
        if options.baselines:
            counts |= {steps_of_share(share, steps) for _, share in shares}
        chosen = [plain, *cached, *options.methods]
        for count in sorted(counts - {steps}, reverse=True):
            chosen += self.in_steps(count)
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

    def in_steps(self, count: int) -> Iterator[Method]:
        """Uncached runs of ``count`` steps: with the model's own solver, and with UniPC if it works with the model."""
        yield methods.fewer(count, self._steps)
        with suppress(ModelError):  # a scheduler that does not support flow matching; one notice is enough for that
            self._maker.make(methods.solver(min(2, count), self._steps), 0)
            yield methods.solver(count, self._steps)

    def _share_of(self, method: Method) -> float | None:
        """Share of the blocks that a method runs on the first case; None if it fails."""
        try:
            return self._maker.make(method, 0).share
        except H2GenError as error:
            self.notices.append(f"{method.label} is left out: {error}")
            return None

    def _share(self, method: Method) -> float:
        """Share of the blocks that a method runs, on some of the cases."""
        cases = range(min(_COUNTED, len(self._maker.cases)))
        return statistics.fmean(self._maker.make(method, case).share for case in cases)

    def _for_budget(self, budget: float) -> Iterator[Method]:
        """The methods for a budget without h2gen's policies: fewer steps, also with UniPC, and the paper's cache."""
        steps = self._steps
        count = max(1, int(budget * steps + 1e-9))
        if count < steps:
            yield from self.in_steps(count)
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


def _distinct(shares: Sequence[float]) -> list[float]:
    """Shares at least ``TOLERANCE`` apart; of closer ones, the first."""
    kept: list[float] = []
    for share in shares:
        if all(abs(share - other) >= TOLERANCE for other in kept):
            kept.append(share)
    return kept
