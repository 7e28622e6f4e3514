"""Many settings of H2-Cache at once: the grid that is run, the row that is worth keeping, and the preset made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from h2gen.cache.config import CacheConfig
from h2gen.errors import SettingError
from h2gen.evaluation.metrics import MetricInfo
from h2gen.evaluation.results import Comparison, MethodResult

LARGEST = 100
"""Settings in a grid."""
CLOSE = 0.95
"""SSIM of the worst picture from which on a recommended row is called close."""


def grid(base: CacheConfig, tau1: str | None, tau2: str | None, tolerance: str | None = None) -> list[CacheConfig]:
    """Every combination of numbers such as ``0.05,0.1``, with the guards and what is not given from ``base``.

    Raises:
        SettingError: one is no number or below 0, or there are too many combinations.
    """
    first = [base.tau1] if tau1 is None else thresholds("tau1", tau1)
    second = [base.tau2] if tau2 is None else thresholds("tau2", tau2)
    third = [base.tolerance] if tolerance is None else thresholds("tolerance", tolerance)
    count = len(first) * len(second) * len(third)
    if count > LARGEST:
        raise SettingError(f"That would be {count} settings, more than {LARGEST}; give fewer.")
    return [replace(base, tau1=one, tau2=two, tolerance=three) for one, two, three in product(first, second, third)]


def thresholds(name: str, text: str) -> list[float]:
    """Numbers with commas between them, each once.

    Raises:
        SettingError: one is no number.
    """
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise SettingError(f"{name} is {text!r}; give numbers such as 0.05,0.1.") from error


def recommended(results: Sequence[MethodResult], metrics: Sequence[MetricInfo]) -> str:
    """Of H2-Cache's rows the fastest by the clock whose worst picture is close, or else the closest on average."""
    ours = [result for result in results if result.kind == "h2"]
    if not ours:
        return results[0].name
    close = [result for result in ours if "ssim" in result.scores and result.scores["ssim"].worst >= CLOSE]
    if close:
        return max(close, key=lambda result: result.speedup).name
    first = next((metric for metric in metrics if metric.fidelity), metrics[0])
    return max(ours, key=lambda result: result.closeness(first)).name


def cache_of(method: MethodResult) -> CacheConfig:
    """The settings of one of H2-Cache's rows."""
    return CacheConfig(**{name: value for name, value in method.detail.items() if name not in ("steps", "solver")})


def figures_of(method: MethodResult, comparison: Comparison) -> dict[str, Any]:
    """What a preset's file says of its measurement."""
    settings, model = comparison.settings, comparison.model
    figures: dict[str, Any] = {"share": round(method.share, 3), "speedup": round(method.speedup, 2)}
    for metric in comparison.metrics:
        if metric.name in method.scores:
            name = metric.name.replace("-", "_")
            score = method.scores[metric.name]
            figures |= {f"{name}_mean": round(score.mean, 4), f"{name}_worst": round(score.worst, 4)}
    count = len(comparison.cases)
    figures["measured_on"] = (
        f"{model['name']}, {count} picture{'s' * (count > 1)}, {settings['width']}x{settings['height']}, "
        f"{settings['steps']} steps, guidance {settings['guidance']:g}, cfg {settings['cfg']:g}, against the uncached "
        f"pictures; time on {model['device']} {model['dtype']}"
    )
    return figures
