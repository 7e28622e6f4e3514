"""What each budget of blocks buys, by whom: the rows of the frontier, and how the best peer compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from h2gen.evaluation import methods
from h2gen.evaluation.methods import Method
from h2gen.evaluation.results import Comparison, MethodResult
from h2gen.settings.profiles import Profile

BUDGETS = (0.5, 0.33, 0.25, 0.2)
OVER = 0.02
"""How far above a budget a method's share may be, as a part of all blocks: the costs are equal within it."""
AIM = 0.7
"""Of the best peer's error, ours should be at most so much."""


def ours(profile: Profile, budgets: Sequence[float]) -> list[Method]:
    """Of a profile, for each budget the closest choice of each sort: decided beforehand, and adapting."""
    found: dict[str, Method] = {}
    for budget in budgets:
        for adapting in (False, True):
            fitting = [
                choice
                for choice in profile.choices
                if choice.cache.enabled
                and choice.figures.share <= budget + OVER / 2
                and (not choice.cache.plan) is adapting
            ]
            if fitting:
                best = max(fitting, key=lambda choice: choice.figures.ssim_mean)
                method = methods.tuned(f"h2gen, {best.label}", best.steps, best.cache, best.solver)
                found[method.name] = method
    return list(found.values())


@dataclass(frozen=True)
class Row:
    """One method for one budget. ``whose`` is ours, paper, steps, solver or peer; ``error`` is 1 - mean SSIM."""

    budget: float
    result: MethodResult
    whose: str

    @property
    def error(self) -> float:
        return 1 - self.result.scores["ssim"].mean

    def to_json(self) -> dict[str, Any]:
        scores = self.result.scores
        return {
            "budget": self.budget,
            "method": self.result.name,
            "label": self.result.label,
            "whose": self.whose,
            "adapts": self.adapts,
            "share": self.result.share,
            "error": self.error,
            "ssim_worst": scores["ssim"].worst,
            "psnr_mean": min(scores["psnr"].mean, 120.0),
            "psnr_worst": min(scores["psnr"].worst, 120.0),
            "seconds": self.result.seconds.median,
        }

    @property
    def adapts(self) -> bool:
        """Whether it is ours and decides for each picture anew."""
        return self.whose == "ours" and "plan" not in self.result.detail


def rows(comparison: Comparison, own: Sequence[Method], budgets: Sequence[float]) -> list[Row]:
    """For each budget the best of every sort of method that it pays for, within ``OVER``, the closest first.

    Nobody is bound to spend a budget: what came closer for less is what it buys.
    """
    mine = {method.name for method in own}
    found: list[Row] = []
    for budget in budgets:
        best: dict[tuple[str, str, bool], Row] = {}
        for result in comparison.methods:
            if result.kind in ("reference", "truth") or result.share > budget + OVER:
                continue
            row = Row(budget, result, _whose(result, mine))
            sort = row.whose, result.name.split()[0] if row.whose == "peer" else "", row.adapts
            if sort not in best or row.error < best[sort].error:
                best[sort] = row
        found += sorted(best.values(), key=lambda row: row.error)
    return found


def _whose(result: MethodResult, mine: set[str]) -> str:
    if result.name in mine:
        return "ours"
    return "paper" if result.kind == "h2" else result.kind


def verdict(found: Sequence[Row], budget: float) -> tuple[float, Row, Row] | None:
    """Our adaptive policy's error as a part of the best other's at a budget; None where one of the two is missing.

    Where nothing of ours adapts there, it is our best plan's.
    """
    here = [row for row in found if row.budget == budget]
    mine = [row for row in here if row.adapts] or [row for row in here if row.whose == "ours"]
    others = [row for row in here if row.whose in ("steps", "solver", "peer")]
    if not mine or not others:
        return None
    best, rival = (min(rows, key=lambda row: row.error) for rows in (mine, others))
    return (best.error / rival.error if rival.error > 0 else math.inf), best, rival
