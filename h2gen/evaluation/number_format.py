"""How figures are displayed: seconds, speed-ups, shares and metric values, rounded to the digits that matter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from h2gen.wording import below_one, plural

if TYPE_CHECKING:
    from h2gen.evaluation.metrics import MetricInfo


def second_digits(value: float) -> int:
    """Decimals of a number of seconds: three significant digits."""
    return 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3


def seconds(value: float) -> str:
    """``0.928 s``, ``12.8 s``, ``105 s``, with a non-breaking space."""
    return f"{value:.{second_digits(value)}f}\u00a0s"


def duration(value: float) -> str:
    """A number of seconds for planning ahead: ``40 seconds``, ``17 minutes``, ``3.5 hours``."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if value >= 1.5 * length:
            amount = value / length
            return f"{amount:.0f} {unit}" if amount >= 9.5 else f"{amount:.1f} {unit}".replace(".0 ", " ")
    return plural(max(1, round(value)), "second")


def times(value: float) -> str:
    """A speed-up without its unit: ``1.74``, ``12.6``."""
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(value: float) -> str:
    """A share: ``52 %``, ``3.5 %``, with a non-breaking space."""
    digits = 0 if value >= 0.0995 or value == 0 else 1
    return f"{100 * value:.{digits}f}\u00a0%"


def reading(metric: MetricInfo, value: float, *, unit: bool = True) -> str:
    """A metric's value: ``33.5 dB``, ``0.971``, ``identical`` if it is infinite, a dash for NaN."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "identical"
    if not metric.unit:
        return below_one(value, 3 if abs(value) < 9.9995 else 1)
    return f"{value:.1f}" + (f"\u00a0{metric.unit}" if unit else "")
