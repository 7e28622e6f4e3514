"""Finds the tolerance or thresholds at which the cache runs a given share of the blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from h2gen.cache import CacheConfig

ADAPTIVE = CacheConfig(0, 0, tolerance=1)
"""Only a tolerance, as the family to search: its value is a factor of the number found."""
LOWEST, HIGHEST = 1e-5, 1.0
"""Range of the search. A relative change of 1 is as large as the tensor itself; higher thresholds change nothing."""
CLOSE = 0.01
"""The search ends once the share is at most this far below the budget."""
MOST = 12
"""Numbers tried per budget, at most."""
TOLERANCES = 8
"""Tolerances tried per budget, at most."""
_TOLERANCE_RANGE = 1e-3, 0.5
"""At the low end almost nothing is skipped, at the high end everything that can be."""


@dataclass(frozen=True)
class FittedCache:
    """Settings, and the share of the blocks that they run."""

    cache: CacheConfig
    share: float


def fit_to_budget(
    family: CacheConfig,
    budget: float,
    share_of: Callable[[CacheConfig], float],
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    most: int = MOST,
) -> FittedCache | None:
    """The settings of a family whose share of the blocks is closest to a budget without exceeding it.

    The share falls in steps as the number rises, so this bisects the range, geometrically.

    Args:
        family: its thresholds and tolerance are factors of the number that is searched.
        budget: share of the blocks.
        share_of: makes images with some settings and returns the share of the blocks that ran.
        lowest: a number that is too small.
        highest: the largest number tried.
        most: numbers tried, at most.

    Returns:
        None if even the highest number stays above the budget.
    """
    low, high = lowest, highest
    best: FittedCache | None = None
    for attempt in range(most):
        tau = high if attempt == 0 else (low * high) ** 0.5
        # Few digits, so that they can be retyped.
        number = float(f"{tau:.4g}")
        numbers: dict[str, Any] = {
            name: float(f"{getattr(family, name) * number:.6g}") for name in ("tau1", "tau2", "tolerance")
        }
        cache = replace(family, **numbers)
        share = share_of(cache)
        if share <= budget + 1e-9:
            if best is None or share > best.share:
                best = FittedCache(cache, share)
            high = tau
            if budget - share <= CLOSE:
                break
        elif attempt == 0:
            return None
        else:
            low = tau
    return best


def fit_tolerance(family: CacheConfig, budget: float, share_of: Callable[[CacheConfig], float]) -> FittedCache | None:
    """The same for a tolerance, whose useful range is narrower."""
    return fit_to_budget(family, budget, share_of, *_TOLERANCE_RANGE, TOLERANCES)


def guard(plan: str, share_of: Callable[[CacheConfig], float]) -> CacheConfig:
    """A plan with the lowest tolerance that still adds no step to it in the images of ``share_of``.

    In other images it adds some where more goes wrong than in any of these.

    Args:
        plan: of full and skipped steps.
        share_of: makes images with some settings and returns the share of the blocks that ran.
    """
    low, high = _TOLERANCE_RANGE
    found = replace(ADAPTIVE, plan=plan, tolerance=high)
    fewest = share_of(found)
    for _ in range(TOLERANCES - 1):
        middle = (low * high) ** 0.5
        cache = replace(found, tolerance=float(f"{middle:.4g}"))
        if share_of(cache) <= fewest + 1e-9:
            high, found = middle, cache
        else:
            low = middle
    return found
