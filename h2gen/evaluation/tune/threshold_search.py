"""Searches settings of the paper's two-stage cache, thresholds and what refines them, for one budget after another.

The search only varies the ratio of the thresholds; the budget determines their common factor. That is found on
predicted decisions (``stage_changes``), so that a setting costs one to three measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from h2gen.cache import CacheConfig
from h2gen.evaluation.fit_budget import fit_to_budget
from h2gen.evaluation.tune.candidates import Candidate

PAPER = CacheConfig(0.15, 0.22)
"""The start of the search: the paper's thresholds, without refinements."""
RATIOS = ((0.1, 0.2), (0.2, 0.15), (0.15, 0.0), (0.0, 0.22), (0.15, 0.22))
"""Of tau1 to tau2. Without tau1 only the detail is ever reused; without tau2 it is reused when the structure is."""
MOVES: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"forecast": 1}, {"forecast": 0}),
    tuple({"warmup_steps": count} for count in (2, 3, 4, 0)),
    tuple({"tau1": tau1, "tau2": tau2} for tau1, tau2 in RATIOS),
    ({"hierarchy": "checked"}, {"hierarchy": "forced"}),
    ({"pfs": "stable"}, {"pfs": "paper"}),
    ({"budget": True}, {"budget": False}),
    ({"final_steps": 1}, {"final_steps": 0}),
    ({"max_consecutive": 3}, {"max_consecutive": 2}, {"max_consecutive": 0}),
    ({"max_detail_age": 3}, {"max_detail_age": 0}),
)
"""The values that the search tries in turn, by setting; those that help most often come first."""
_HIGHEST = 8.0
"""The largest factor of the thresholds."""
_CLOSE = 0.015
"""A setting is measured again with other thresholds if its share is farther than this from the budget."""
_FITS = 3


class ThresholdSearch:
    """A coordinate search that starts each budget from the best settings of the one before.

    Args:
        predict: the share of the blocks that some settings would run; cheap.
        measure: some settings on the search's prompts.
        tries: settings measured per budget.
    """

    def __init__(
        self, predict: Callable[[CacheConfig], float], measure: Callable[[CacheConfig], Candidate], tries: int
    ) -> None:
        self._predict, self._measure, self._tries = predict, measure, tries
        self._family = PAPER
        self._left = 0
        self._tried: set[CacheConfig] = set()

    def within(self, budget: float) -> Candidate | None:
        """The best settings found that run at most a share of the blocks; None if none does."""
        self._left, self._tried = self._tries, set()
        best = None
        for family in dict.fromkeys((self._family, PAPER)):
            if best is None:
                self._family, best = family, self._fitted(family, budget, math.inf)
        if best is None:
            return None
        improved = True
        while improved and self._left > 0:
            improved = False
            for family in self._moves():
                found = self._fitted(family, budget, best.error)
                if found is not None and found.error < best.error:
                    self._family, best, improved = family, found, True
        return best

    def _moves(self) -> Iterator[CacheConfig]:
        """The families that differ from the best in one setting; the best may change meanwhile."""
        for values in MOVES:
            for value in values:
                family = replace(self._family, **value)
                if family not in self._tried:
                    yield family

    def _fitted(self, family: CacheConfig, budget: float, least: float) -> Candidate | None:
        """A family with the thresholds that meet a budget.

        None if no thresholds do, if the tries are used up, or if its error cannot be less than ``least``, because even
        above the budget it is not.
        """
        self._tried.add(family)
        best, target, tried = None, budget, set()
        for _ in range(_FITS):
            fitted = fit_to_budget(family, target, self._predict, highest=_HIGHEST)
            if fitted is None:
                break
            cache = replace(fitted.cache, tau1=_short(fitted.cache.tau1), tau2=_short(fitted.cache.tau2))
            if cache in tried or self._left <= 0:
                break
            tried.add(cache)
            self._left -= 1
            found = self._measure(cache)
            if found.share <= budget + 1e-9 and (best is None or found.error < best.error):
                best = found
            if 0 <= budget - found.share <= _CLOSE or (found.share > budget and found.error >= least):
                break
            target += budget - found.share
        return best


def _short(threshold: float) -> float:
    """Few digits, so that it can be retyped."""
    return float(f"{threshold:.3g}")
