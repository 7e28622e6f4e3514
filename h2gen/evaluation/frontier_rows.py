"""The rows of a frontier: the best methods for each budget, and how h2gen compares with the best alternative."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from h2gen.evaluation import methods
from h2gen.evaluation.methods import Method
from h2gen.evaluation.number_format import percent
from h2gen.evaluation.report import RankedRow, Ranking, Story
from h2gen.evaluation.results import IDENTICAL, Comparison, MethodResult
from h2gen.settings.profiles import Choice, Profile, sort_of

OVER = 0.02
"""How far a method's share may exceed a budget, as a share of all blocks; costs this close count as equal."""


POLICIES = {"tolerance": "the adaptive policy", "plan": "the plan", "thresholds": "the two-stage cache"}
"""h2gen's own policies, by the names that ``sort_of`` returns; each is judged separately."""


@dataclass(frozen=True)
class Row:
    """One method at one budget.

    ``whose`` is ours, paper, steps, solver or peer; ``policy`` is one of ``POLICIES`` if it is ours, otherwise empty.
    ``error`` is 1 - mean SSIM.
    """

    budget: float
    result: MethodResult
    whose: str
    policy: str = ""

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
    def lpips(self) -> tuple[float, float] | None:
        """Mean and worst LPIPS; None if it was not measured."""
        scores = self.result.scores.get("lpips")
        return None if scores is None else (scores.mean, scores.worst)

    def to_json(self) -> dict[str, Any]:
        mean, worst = self.psnr
        lpips_mean, lpips_worst = self.lpips or (None, None)
        return {
            "budget": self.budget,
            "method": self.result.name,
            "label": self.result.label,
            "whose": self.whose,
            "policy": self.policy,
            "share": self.result.share,
            "error": self.error,
            "error_worst": self.worst_error,
            "ssim_worst": self.result.scores["ssim"].worst,
            "psnr_mean": mean,
            "psnr_worst": worst,
            "lpips_mean": lpips_mean,
            "lpips_worst": lpips_worst,
            "seconds": self.result.seconds.median,
        }


def titles(rows: Sequence[Row]) -> list[str]:
    """Titles of what ``cells`` returns for these rows."""
    found = ["blocks", "1 - SSIM", "worst", "PSNR", "worst"]
    return [*found, "LPIPS", "worst"] if any(row.lpips for row in rows) else found


def cells(row: Row) -> list[str]:
    """A row's figures as text."""
    mean, worst = row.psnr
    figures = [f"{row.error:.4f}", f"{row.worst_error:.3f}", f"{mean:.1f}", f"{worst:.1f}"]
    if row.lpips:
        figures += [f"{row.lpips[0]:.4f}", f"{row.lpips[1]:.3f}"]
    return [percent(row.result.share), *figures]


def own_methods(profile: Profile, budgets: Sequence[float]) -> list[Method]:
    """For each budget a profile's closest settings of each of ``POLICIES``."""
    found: dict[str, Method] = {}
    for budget in budgets:
        for policy in POLICIES:
            if fitting := _within(profile, budget, policy):
                best = max(fitting, key=lambda choice: choice.figures.ssim_mean)
                method = methods.tuned(f"H2-Cache, {best.label}", best.steps, best.cache, best.solver)
                found[method.name] = method
    return list(found.values())


def lacking(profile: Profile, budgets: Sequence[float]) -> list[str]:
    """A line for each of ``POLICIES`` that a profile lacks within some of the budgets."""
    lines = []
    for policy, title in POLICIES.items():
        without = [percent(budget) for budget in budgets if not _within(profile, budget, policy)]
        if without:
            lines.append(
                f"{title[0].upper()}{title[1:]} has no row at {', '.join(without)} of the blocks: the profile "
                f"{profile.path.name!r} has none that runs so few."
            )
    return lines


def _within(profile: Profile, budget: float, policy: str) -> list[Choice]:
    return [
        choice
        for choice in profile.choices
        if choice.cache.enabled and choice.figures.share <= budget + OVER / 2 and choice.sort == policy
    ]


def best_rows(comparison: Comparison, own: Sequence[Method], budgets: Sequence[float]) -> list[Row]:
    """For each budget the best method of each kind that runs no more blocks, within ``OVER``; the closest

    first. A method need not use the whole budget: a closer, cheaper one is the better choice for it.
    """
    policies = {method.name: sort_of(method.cache) for method in own}
    found: list[Row] = []
    for budget in budgets:
        best: dict[tuple[str, str], Row] = {}
        for result in comparison.methods:
            if result.kind in ("reference", "truth") or result.share > budget + OVER:
                continue
            row = Row(budget, result, _whose(result, policies), policies.get(result.name, ""))
            kind = result.name.split()[0] if row.whose in ("peer", "solver") else row.policy
            sort = row.whose, kind
            if sort not in best or row.error < best[sort].error:
                best[sort] = row
        found += sorted(best.values(), key=lambda row: row.error)
    return found


def _whose(result: MethodResult, own: Collection[str]) -> str:
    if result.name in own:
        return "ours"
    return "paper" if result.kind == "h2" else result.kind


@dataclass(frozen=True)
class Verdict:
    """How one of h2gen's own policies compares with the best alternative at a budget.

    Of the alternatives' rows, ``rival`` has the smallest mean error, ``worst_rival`` the smallest at its worst prompt.
    """

    row: Row
    rival: Row
    worst_rival: Row

    @property
    def ratio(self) -> float:
        """Its error as a multiple of the rival's; infinite if only the rival's is 0."""
        return _ratio(self.row.error, self.rival.error)

    @property
    def worst_ratio(self) -> float:
        """Its error at its worst prompt as a multiple of the worst rival's at its worst prompt."""
        return _ratio(self.row.worst_error, self.worst_rival.worst_error)

    def __str__(self) -> str:
        name = f"{POLICIES[self.row.policy]} ({self.row.result.label})"
        name = name[0].upper() + name[1:]
        rival, other = self.rival.result.label, self.worst_rival.result.label
        if math.isinf(self.ratio):
            return f"{name} differs from the uncached run; the best alternative, {rival}, is identical to it."
        there = "" if rival == other else f" that of the best there, {other}"
        return (
            f"{name} has {self.ratio:.2f}x the error of the best alternative, {rival}; at the worst prompt, "
            f"{self.worst_ratio:.2f}x{there}."
        )

    def to_json(self) -> dict[str, Any]:
        ratios = {"ratio": self.ratio, "worst_ratio": self.worst_ratio}
        return {
            "budget": self.row.budget,
            "policy": self.row.policy,
            "method": self.row.result.name,
            "rival": self.rival.result.name,
            "worst_rival": self.worst_rival.result.name,
            **{name: None if math.isinf(ratio) else ratio for name, ratio in ratios.items()},
        }


def _ratio(one: float, other: float) -> float:
    return 1.0 if one == other else one / other if other > 0 else math.inf


def verdicts(found: Sequence[Row], budget: float) -> list[Verdict]:
    """One verdict per policy that has a row at a budget; none if there is no alternative."""
    here = [row for row in found if row.budget == budget]
    others = _alternatives(here)
    if not others:
        return []
    rival = min(others, key=lambda row: row.error)
    worst = min(others, key=lambda row: row.worst_error)
    own = {row.policy: row for row in here if row.whose == "ours"}
    return [Verdict(own[policy], rival, worst) for policy in POLICIES if policy in own]


def _alternatives(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.whose in ("steps", "solver", "peer")]


def story(found: Sequence[Row], budgets: Sequence[float]) -> Story:
    """The frontier's report: its conclusion at each budget, as the terminal prints it, and the rankings."""
    told = [each for budget in budgets for each in verdicts(found, budget)]
    judged = len({row.budget for row in _alternatives(found)})  # including those that a policy has no row for
    counts = []
    for policy, title in POLICIES.items():
        ratios = [each.ratio for each in told if each.row.policy == policy]
        if ratios:
            counts.append(f"{title} at {sum(ratio < 1 for ratio in ratios)} of {judged} budgets")
    headline = "Methods ranked at equal compute"
    if counts:
        headline = f"Closer than every alternative: {', '.join(counts)}"
    tables = []
    for budget in budgets:
        here = [row for row in found if row.budget == budget]
        rows = [RankedRow(row.result.label, cells(row), row.whose == "ours") for row in here]
        tables.append(Ranking(f"At {percent(budget)} of the blocks", titles(here), rows))
    sentences = [f"At {percent(each.row.budget)} of the blocks: {each}" for each in told]
    return Story("h2gen frontier", headline, sentences, tables)


def first_shown(results: Sequence[MethodResult], own: Sequence[Method]) -> str | None:
    """The name of h2gen's own method that the report shows first: one that adapts to each image, if there is one."""
    names = {result.name for result in results}
    order = list(POLICIES)
    measured = [method for method in own if method.name in names]
    ranked = sorted(measured, key=lambda method: order.index(sort_of(method.cache)))
    return next((method.name for method in ranked), None)
