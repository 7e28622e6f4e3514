"""A tolerance, or thresholds, that come to a budget while each picture still decides for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from h2gen.cache import CacheConfig

ADAPTIVE = CacheConfig(0, 0, tolerance=1)
"""What is searched: its thresholds and tolerance are factors of the one number that is found for a budget."""
LOWEST, HIGHEST = 1e-5, 1.0
"""Where the number is searched; a change of 1 is as large as what changes, and nothing above it decides anything."""
CLOSE = 0.01
"""How far the share may be below a budget for the search to end."""
MOST = 12
"""Numbers tried for one budget."""


@dataclass(frozen=True)
class Fitted:
    """Settings, and the share of the blocks that they came to."""

    cache: CacheConfig
    share: float


def fitted(
    family: CacheConfig, budget: float, share_of: Callable[[CacheConfig], float], highest: float = HIGHEST
) -> Fitted | None:
    """The settings of a family whose share of the blocks is nearest to a budget and not above it.

    The share falls as the number rises, but in stairs: the range is halved, by ratios.

    Args:
        family: its thresholds and tolerance are factors of the number that is searched.
        budget: share of the blocks.
        share_of: makes pictures and counts blocks.
        highest: the largest number tried.

    Returns:
        None where even the highest numbers stay above the budget.
    """
    low, high = LOWEST, highest
    best: Fitted | None = None
    for turn in range(MOST):
        tau = high if turn == 0 else (low * high) ** 0.5
        number = float(f"{tau:.4g}")  # few digits, so that it can be typed again
        numbers = {name: getattr(family, name) * number for name in ("tau1", "tau2", "tolerance")}
        cache = replace(family, **numbers)
        share = share_of(cache)
        if share <= budget + 1e-9:
            if best is None or share > best.share:
                best = Fitted(cache, share)
            high = tau
            if budget - share <= CLOSE:
                break
        elif turn == 0:
            return None
        else:
            low = tau
    return best
