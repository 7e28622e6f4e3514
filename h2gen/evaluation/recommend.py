"""Which of H2-Cache's rows a comparison recommends, and how a row is saved as a preset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from h2gen.cache.config import CacheConfig
from h2gen.evaluation.metrics import MetricInfo
from h2gen.evaluation.results import Comparison, MethodResult
from h2gen.settings import presets

CLOSE = 0.95
"""SSIM that the worst image of a recommended row must reach."""

AS_FAST = 1.05
"""Speed-ups that differ by at most this factor count as the same."""
SAVES = 1.02
"""Speed-up from which a method counts as saving time."""


def recommended(results: Sequence[MethodResult], metrics: Sequence[MetricInfo]) -> str:
    """H2-Cache's fastest row whose worst image reaches ``CLOSE``, otherwise its closest row on average.

    Of rows that are as fast within ``AS_FAST`` it is the closest: clocks are not that exact.
    """
    rows = [result for result in results if result.kind == "h2"]
    if not rows:
        return results[0].name
    first = next((metric for metric in metrics if metric.fidelity), metrics[0])
    close = [result for result in rows if "ssim" in result.scores and result.scores["ssim"].worst >= CLOSE]
    if close:
        fastest = max(result.speedup for result in close)
        rows = [result for result in close if result.speedup * AS_FAST >= fastest]
    return max(rows, key=lambda result: result.closeness(first)).name


def row_names(results: Sequence[MethodResult]) -> list[str]:
    """H2-Cache's methods in the order of the grid. Row numbers count these from 1, whatever the table's order."""
    return [result.name for result in results if result.kind == "h2"]


def numbered(results: Sequence[MethodResult], row: int) -> str:
    """The name of one of H2-Cache's rows, by its number from 1; the last one if some were left out."""
    rows = row_names(results)
    return rows[min(row, len(rows)) - 1] if rows else results[0].name


def cache_of(method: MethodResult) -> CacheConfig:
    """The cache settings of one of H2-Cache's rows."""
    return CacheConfig(**{name: value for name, value in method.detail.items() if name not in ("steps", "solver")})


def save_preset(name: str, comparison: Comparison) -> Path:
    """Write the chosen row as a user preset.

    Raises:
        PresetError: the name is taken or invalid, or the file cannot be written.
    """
    chosen = comparison.method(comparison.chosen)
    description = f"Chosen by h2gen compare, for {comparison.model['name']} at {comparison.settings['steps']} steps."
    return presets.write_preset(name, cache_of(chosen), description, preset_figures(chosen, comparison))


def preset_figures(method: MethodResult, comparison: Comparison) -> dict[str, Any]:
    """A method's figures as a preset's file states them."""
    settings, model = comparison.settings, comparison.model
    figures: dict[str, Any] = {"share": round(method.share, 3), "speedup": round(method.speedup, 2)}
    for metric in comparison.metrics:
        if metric.name in method.scores:
            name = metric.name.replace("-", "_")
            score = method.scores[metric.name]
            figures |= {f"{name}_mean": round(score.mean, 4), f"{name}_worst": round(score.worst, 4)}
    count, noun = len(comparison.cases), comparison.noun
    frames = f", {settings['frames']} frames" if "frames" in settings else ""
    figures["measured_on"] = (
        f"{model['name']}, {count} {noun}{'s' * (count > 1)}, {settings['width']}x{settings['height']}{frames}, "
        f"{settings['steps']} steps, guidance {settings['guidance']:g}, cfg {settings['cfg']:g}, against the uncached "
        f"{noun}s; time on {model['device']} {model['dtype']}"
    )
    return figures
