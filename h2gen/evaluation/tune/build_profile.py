"""Turns measured candidates into a profile: keeps those that no other candidate beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from h2gen.errors import SettingError
from h2gen.evaluation.methods import Method
from h2gen.evaluation.results import IDENTICAL, Comparison, MethodResult, pareto
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey, sort_of
from h2gen.settings.table import SORTS
from h2gen.settings.values import OFF


def build_profile(
    comparison: Comparison, methods: Sequence[Method], key: ProfileKey, path: Path, more: Mapping[str, Any]
) -> Profile:
    """The candidates that no other of the same sort beats in both share of blocks and mean SSIM.

    Each sort has a curve of its own: plans, tolerances, thresholds and fewer steps.

    Args:
        comparison: of the methods and the uncached run, with PSNR and SSIM.
        methods: the candidates.
        key: what the profile is for.
        path: the profile's file.
        more: further facts about the measurement.

    Raises:
        SettingError: no method runs fewer blocks than the uncached run.
    """
    by_name = {method.name: method for method in methods}
    results = [result for result in comparison.methods if result.name in by_name and result.share < 1]
    if not results:
        raise SettingError(
            "None of the candidates runs fewer blocks than the uncached run; give smaller --budgets or more --steps."
        )
    choices = []
    for sort in SORTS:
        alike = [result for result in results if sort_of(by_name[result.name].cache) == sort]
        best = pareto([(result.share, result.scores["ssim"].mean) for result in alike])
        choices += [_choice(by_name[r.name], r) for r, is_best in zip(alike, best, strict=True) if is_best]
    measured = {
        "pictures": len(comparison.cases),
        "device": comparison.model["device"],
        **{name: comparison.model[name] for name in ("dtype", "compile") if name in comparison.model},
        "guidance": comparison.settings["guidance"],
        "cfg": comparison.settings["cfg"],
        "seconds_uncached": round(comparison.reference.seconds.median, 4),
        "made": comparison.made,
        "versions": dict(comparison.versions),
        **more,
    }
    return Profile(path, key, tuple(sorted(choices, key=lambda choice: -choice.figures.speedup)), measured)


def _choice(method: Method, result: MethodResult) -> Choice:
    cache = method.cache if method.cache.enabled else OFF
    scores = result.scores
    return Choice(
        method.label,
        method.steps,
        method.solver,
        cache,
        Figures(
            share=result.share,
            seconds=result.seconds.median,
            speedup=result.speedup,
            ssim_mean=scores["ssim"].mean,
            ssim_worst=scores["ssim"].worst,
            psnr_mean=min(scores["psnr"].mean, IDENTICAL),
            psnr_worst=min(scores["psnr"].worst, IDENTICAL),
        ),
    )
