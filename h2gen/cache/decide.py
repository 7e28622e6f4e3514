"""The decision on one stage of one picture: by the hierarchy and the residual's age, or by the indicator's change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from h2gen.cache.outcome import UNDECIDED, Decision, Outcome

if TYPE_CHECKING:
    from h2gen.cache.config import CacheConfig


def decide_by_change(change: float | None, tau: float) -> Outcome:
    """Compare a stage's relative change with its threshold.

    Args:
        change: of the indicator since the stage was last computed; None if nothing is kept. A change that is not
            finite is a miss.
        tau: the stage's threshold.

    Returns:
        ``REUSED`` if ``change < tau`` (strictly), else ``COMPUTED``. Source: arXiv 2510.27171.
    """
    if change is not None and math.isfinite(change) and change < tau:
        return Outcome.REUSED
    return Outcome.COMPUTED


def decide_detail_unseen(structure: Outcome, age: int, config: CacheConfig) -> Decision:
    """Decide the detail stage without looking at its change, if its age or the structure stage settles it.

    Args:
        structure: what became of the structure stage at this step.
        age: steps since the detail residual was computed.
        config: ``max_detail_age`` and ``hierarchy``.

    Returns:
        ``GUARDED`` if the residual is too old, ``FORCED`` after a structure hit unless the hierarchy is ``checked``,
        else ``UNDECIDED``.
    """
    if 0 < config.max_detail_age < age:
        return Outcome.GUARDED
    if not structure.ran and config.hierarchy == "forced":
        return Outcome.FORCED
    return UNDECIDED
