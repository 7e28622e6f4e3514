"""Chooses what to compare a cache with: fewer steps that run as many blocks, and other caches at equal cost.

Runs of fewer steps that take as long are chosen later, by measured medians: see ``rivals``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Protocol

from h2gen.cache.config import CacheConfig
from h2gen.errors import BadPicture, H2GenError, ModelError, OutputError
from h2gen.evaluation import builtin_prompts, methods
from h2gen.evaluation.fit_budget import fit_to_budget
from h2gen.evaluation.make_image import ImageMaker, MadeImage
from h2gen.evaluation.methods import Method
from h2gen.evaluation.options import CompareObserver, MethodOptions
from h2gen.evaluation.peers import SCORED, TOLERANCE, EqualCost, Peer, Value, find_best, find_equal_cost
from h2gen.evaluation.results import Case
from h2gen.evaluation.rivals import steps_of_share, steps_within
from h2gen.models.choices import SOLVERS, TRIED_SOLVERS

PAPER = CacheConfig(0.15, 0.22)
"""The paper's thresholds, which are scaled together to meet a budget."""
COUNTED = 8
"""Cases, at most, whose blocks are counted while searching a peer's setting."""


class Measured(Protocol):
    """What is known about a finished image: the share of the blocks that ran."""

    @property
    def share(self) -> float: ...


class BaselineSearch:
    """Finds the methods of a comparison. ``notices`` are lines for the reader.

    Args:
        maker: makes the images.
        options: what is compared.
        observer: receives progress events.
        measure: measures a method on a case, or returns the earlier measurement.
        recall: returns the earlier measurement of a method on a case, or None.
        remember: returns a method's score on a prompt and seed of the search: the earlier one, or the given function's.
    """

    def __init__(
        self,
        maker: ImageMaker,
        options: MethodOptions,
        observer: CompareObserver,
        measure: Callable[[Method, int], Measured],
        recall: Callable[[Method, int], Measured | None] = lambda _method, _case: None,
        remember: Callable[[Method, Case, Callable[[], float]], float] = lambda _method, _case, make: make(),
    ) -> None:
        self._maker, self._options, self._observer = maker, options, observer
        self._measure, self._recall, self._remember = measure, recall, remember
        self._steps, self._steps_run = maker.settings.steps, maker.settings.steps_run
        self._warm = False
        self._searching = replace(maker, cases=builtin_prompts.to_search(bool(maker.settings.frames)))
        self._uncached: list[MadeImage] = []
        self.notices: list[str] = []

    def warm_up(self) -> None:
        """Make the program's first image, which takes longer than others."""
        if not self._warm:
            self._observer.began("Warming up")
            self._maker.make(replace(methods.reference(self._steps), steps=min(2, self._steps)), 0)
            self._warm = True

    def methods(self) -> list[Method]:
        """All methods, the reference first. Each has run once, so that no measured run is its first."""
        steps, options = self._steps, self._options
        plain = methods.reference(steps)
        cached = [methods.h2(cache, steps) for cache in options.caches]
        self.warm_up()
        shares = [(method, share) for method in cached if (share := self._share_of(method)) is not None]
        cached = [method for method, _ in shares]
        counts = set(options.fewer)
        if options.baselines:
            counts |= {steps_of_share(share, steps) for _, share in shares}
        chosen = [plain, *cached, *options.methods]
        for count in sorted(counts - {steps}, reverse=True):
            chosen += self.in_steps(count)
        kinds = {method.kind for method in chosen}
        if "steps" in kinds and "solver" not in kinds:
            self.notices.append("UniPC is left out: the model's own scheduler does not support flow matching.")
        if options.budgets and "steps" in options.at_budgets:
            chosen += self._within_budgets()
        if "paper" in options.at_budgets:
            for budget in options.budgets:
                chosen += self._paper(budget)
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
        return statistics.fmean(self._measure(method, case).share for case in self._counted)

    @property
    def _counted(self) -> range:
        return range(min(COUNTED, len(self._maker.cases)))

    def _within_budgets(self) -> Iterator[Method]:
        """Fewer steps within each budget, with each solver that works with the model."""
        for solver in TRIED_SOLVERS:
            if solver != "own":
                try:
                    self._maker.make(methods.solver(min(2, self._steps), self._steps, solver), 0)
                except ModelError:
                    reason = "the model's own scheduler does not support flow matching"
                    self.notices.append(f"{SOLVERS[solver]} is left out: {reason}.")
                    continue
            for budget in self._options.budgets:
                for count in steps_within(budget, self._steps, solver, TOLERANCE):
                    own = solver == "own"
                    yield methods.fewer(count, self._steps) if own else methods.solver(count, self._steps, solver)

    def _paper(self, budget: float) -> Iterator[Method]:
        """The paper's cache within a budget."""
        steps = self._steps
        self._observer.began(f"Finding the paper's thresholds for {budget:.0%} of the blocks")
        found = fit_to_budget(PAPER, budget, lambda cache: self._share(methods.h2(cache, steps)), highest=8.0)
        if found is None:
            self.notices.append(f"The paper's cache cannot run as few as {budget:.0%} of the blocks.")
        else:
            yield methods.h2(found.cache, steps)

    def _at_equal_cost(self, peer: Peer, cached: Sequence[Method]) -> Iterator[Method]:
        """A peer at equal cost with each cached run; cached runs of nearly the same cost share one setting."""
        self._observer.began(f"Finding the setting of {peer.title} that costs as much")
        plain = methods.reference(self._steps)
        try:
            targets = _distinct([*self._options.budgets, *(self._share(method) for method in cached)])
            try:  # without calibration, if everything was measured before
                found = [self._known(self._fitted(peer, target, self._recalled_share)) for target in targets]
            except _Unknown:
                runs = [partial(self._searching.make, plain, case) for case in range(len(self._searching.cases))]
                pipe = self._maker.session.pipeline(self._maker.settings)
                ready = peer.calibrated(pipe, runs, steps=self._steps_run)
                found = [self._at_its_best(self._fitted(ready, target, self._share)) for target in targets]
        except OutputError:  # the log cannot be written, which is no fault of the peer
            raise
        except Exception as error:  # noqa: BLE001 - third-party code must not end the comparison
            self.notices.append(f"{peer.title} is left out: {str(error) or type(error).__name__}")
            return
        for each in found:
            if not each.reached:
                self.notices.append(
                    f"{peer.title} cannot run {each.target:.0%} of the blocks; the closest it gets is {each.share:.0%}."
                )
            yield methods.peer(each, self._steps, self._maker.forward_passes, self._steps_run)
        if peer.note:
            self.notices.append(f"{peer.title}: {peer.note}")

    def _fitted(self, peer: Peer, target: float, share: Callable[[Method], float]) -> EqualCost:
        """A peer's setting for a share of the blocks."""

        def measure(one: Peer, value: Value) -> float:
            known = one.share(value, self._steps_run)
            if known is not None:
                return known
            tried = EqualCost(one, value, share=math.nan, target=math.nan, tried=0)
            return share(methods.peer(tried, self._steps, self._maker.forward_passes, self._steps_run))

        budget = target in self._options.budgets
        return find_equal_cost(peer, target, measure, steps=self._steps_run, cases=len(self._counted), budget=budget)

    def _at_its_best(self, found: EqualCost) -> EqualCost:
        """The same setting of a peer, with the further settings that are best on the prompts of the search."""

        def score(one: Peer) -> float:
            method = methods.peer(replace(found, peer=one), self._steps, self._maker.forward_passes, self._steps_run)
            known = (
                self._remember(method, self._searching.cases[case], partial(self._searched_ssim, method, case))
                for case in range(SCORED)
            )
            return statistics.fmean(known)

        if found.share == 1:  # none of them changes anything
            return found
        return replace(found, peer=find_best(found.peer, score))

    def _searched_ssim(self, method: Method, case: int) -> float:
        """SSIM to the uncached image on a prompt of the search; -1 if the image contains NaN."""
        from h2gen.evaluation.video_metrics import mean_ssim  # loads torch

        if not self._uncached:
            plain = methods.reference(self._steps)
            self._uncached = [self._searching.make(plain, each) for each in range(SCORED)]
        try:
            return mean_ssim(self._searching.make(method, case).image, self._uncached[case].image)
        except BadPicture:
            return -1.0

    def _known(self, found: EqualCost) -> EqualCost:
        """The same setting of a peer, with the further settings with which all cases were measured before."""
        for values in product(*found.peer.choices.values()):
            changed: dict[str, Any] = dict(zip(found.peer.choices, values, strict=True))
            tried = replace(found, peer=replace(found.peer, **changed))
            with suppress(_Unknown):
                for case in range(len(self._maker.cases)):
                    self._recalled(methods.peer(tried, self._steps, self._maker.forward_passes, self._steps_run), case)
                return tried
        raise _Unknown

    def _recalled_share(self, method: Method) -> float:
        return statistics.fmean(self._recalled(method, case).share for case in self._counted)

    def _recalled(self, method: Method, case: int) -> Measured:
        known = self._recall(method, case)
        if known is None:
            raise _Unknown
        return known


class _Unknown(Exception):
    """An image has to be made."""


def _distinct(shares: Sequence[float]) -> list[float]:
    """Shares at least ``TOLERANCE`` apart; of closer ones, the first."""
    kept: list[float] = []
    for share in shares:
        if all(abs(share - other) >= TOLERANCE for other in kept):
            kept.append(share)
    return kept
