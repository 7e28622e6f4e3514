"""The rows of a frontier: the best methods for each budget, and how h2gen compares with the best alternative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from h2gen.evaluation import methods
from h2gen.evaluation.methods import Method
from h2gen.evaluation.number_format import percent
from h2gen.evaluation.report import RankedRow, Ranking, Story
from h2gen.evaluation.results import IDENTICAL, Comparison, MethodResult
from h2gen.evaluation.tune.candidates import is_adaptive
from h2gen.settings.profiles import Profile

OVER = 0.02
"""How far a method's share may exceed a budget, as a share of all blocks; costs this close count as equal."""


@dataclass(frozen=True)
class Row:
    """One method at one budget. ``whose`` is ours, paper, steps, solver or peer; ``error`` is 1 - mean SSIM."""

    budget: float
    result: MethodResult
    whose: str

    @property
    def error(self) -> float:
        return 1 - self.result.scores["ssim"].mean

    @property
    def worst_error(self) -> float:
        return 1 - self.result.scores["ssim"].worst

    @property
    def psnr(self) -> tuple[float, float]:
        """Mean and worst PSNR in dB, with ``IDENTICAL`` as its largest value."""
        scores = self.result.scores["psnr"]
        return min(scores.mean, IDENTICAL), min(scores.worst, IDENTICAL)

    @property
    def adapts(self) -> bool:
        """Whether it is h2gen's own and adapts to each image."""
        return self.whose == "ours" and "plan" not in self.result.detail

    def to_json(self) -> dict[str, Any]:
        mean, worst = self.psnr
        return {
            "budget": self.budget,
            "method": self.result.name,
            "label": self.result.label,
            "whose": self.whose,
            "adapts": self.adapts,
            "share": self.result.share,
            "error": self.error,
            "ssim_worst": self.result.scores["ssim"].worst,
            "psnr_mean": mean,
            "psnr_worst": worst,
            "seconds": self.result.seconds.median,
        }


COLUMNS = ("blocks", "1 - SSIM", "worst", "PSNR", "worst")
"""Titles of what ``cells`` returns."""


def cells(row: Row) -> list[str]:
    """A row's figures as text."""
    mean, worst = row.psnr
    figures = [f"{row.error:.4f}", f"{row.worst_error:.3f}", f"{mean:.1f}", f"{worst:.1f}"]
    return [percent(row.result.share), *figures]


def own_methods(profile: Profile, budgets: Sequence[float]) -> list[Method]:
    """For each budget a profile's closest plan, and its closest settings that adapt to each image."""
    found: dict[str, Method] = {}
    for budget in budgets:
        for adaptive in (False, True):
            fitting = [
                choice
                for choice in profile.choices
                if choice.cache.enabled
                and choice.figures.share <= budget + OVER / 2
                and is_adaptive(choice.cache) is adaptive
            ]
            if fitting:
                best = max(fitting, key=lambda choice: choice.figures.ssim_mean)
                method = methods.tuned(f"H2-Cache, {best.label}", best.steps, best.cache, best.solver)
                found[method.name] = method
    return list(found.values())


def best_rows(comparison: Comparison, own: Sequence[Method], budgets: Sequence[float]) -> list[Row]:
    """For each budget the best method of each kind that runs no more blocks, within ``OVER``; the closest

    first. A method need not use the whole budget: a closer, cheaper one is the better choice for it.
    """
    names = {method.name for method in own}
    found: list[Row] = []
    for budget in budgets:
        best: dict[tuple[str, str, bool], Row] = {}
        for result in comparison.methods:
            if result.kind in ("reference", "truth") or result.share > budget + OVER:
                continue
            row = Row(budget, result, _whose(result, names))
            sort = row.whose, result.name.split()[0] if row.whose in ("peer", "solver") else "", row.adapts
            if sort not in best or row.error < best[sort].error:
                best[sort] = row
        found += sorted(best.values(), key=lambda row: row.error)
    return found


def _whose(result: MethodResult, own: set[str]) -> str:
    if result.name in own:
        return "ours"
    return "paper" if result.kind == "h2" else result.kind


def against_best(found: Sequence[Row], budget: float) -> tuple[float, Row, Row] | None:
    """How h2gen compares with the best alternative at a budget; None if either is missing.

    Returns:
        The error of h2gen's adaptive settings, or of its best plan if there are none, as a multiple of the best
        alternative's error; and both rows.
    """
    here = [row for row in found if row.budget == budget]
    own = [row for row in here if row.adapts] or [row for row in here if row.whose == "ours"]
    others = [row for row in here if row.whose in ("steps", "solver", "peer")]
    if not own or not others:
        return None
    best, rival = (min(rows, key=lambda row: row.error) for rows in (own, others))
    return (best.error / rival.error if rival.error > 0 else math.inf), best, rival


def verdict(found: Sequence[Row], budget: float) -> str:
    """``against_best`` in a sentence; empty if there is nothing to compare."""
    compared = against_best(found, budget)
    if compared is None:
        return ""
    ratio, best, rival = compared
    name, other = best.result.label, rival.result.label
    if best.error == rival.error:
        return f"{name} is as close as the best alternative here, {other}."
    if math.isinf(ratio):
        same = "whose pictures are identical to the uncached ones"
        return f"{name} is worse than the best alternative here, {other}, {same}."
    better = "better" if ratio < 1 else "worse"
    return f"{name} is {better} than the best alternative here, {other} ({ratio:.2f}x its error)."


def story(found: Sequence[Row], budgets: Sequence[float]) -> Story:
    """The frontier's report: its conclusion at each budget, as the terminal prints it, and the rankings."""
    ratios = [compared[0] for budget in budgets if (compared := against_best(found, budget)) is not None]
    closer = sum(ratio < 1 for ratio in ratios)
    headline = "Methods ranked at equal compute"
    if ratios:
        budget_s = "budget" if len(ratios) == 1 else "budgets"
        headline = f"H2-Cache is closer than every alternative at {closer} of {len(ratios)} {budget_s}"
    told = [(budget, verdict(found, budget)) for budget in budgets]
    tables = []
    for budget in budgets:
        rows = [RankedRow(r.result.label, cells(r), r.whose == "ours") for r in found if r.budget == budget]
        tables.append(Ranking(f"At {percent(budget)} of the blocks", COLUMNS, rows))
    sentences = [f"At {percent(budget)} of the blocks, {sentence}" for budget, sentence in told if sentence]
    return Story("h2gen frontier", headline, sentences, tables)


def first_shown(results: Sequence[MethodResult], own: Sequence[Method]) -> str | None:
    """The name of h2gen's own method that the report shows first: one that adapts to each image, if there is one."""
    names = {result.name for result in results}
    measured = [method for method in own if method.name in names]
    return next((method.name for method in sorted(measured, key=lambda method: bool(method.cache.plan))), None)
