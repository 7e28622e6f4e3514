"""Figures as people read them: enough digits to compare with, no more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from h2gen.evaluation.metrics import MetricInfo
    from h2gen.evaluation.results import Comparison


def seconds(value: float) -> str:
    """``0.928 s``, ``12.8 s``, ``105 s``; the space does not break."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}\u00a0s"


def times(value: float) -> str:
    """A speed-up as a number: ``1.74``, ``12.6``."""
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(value: float) -> str:
    """A share: ``52 %``, ``3.5 %``."""
    digits = 0 if value >= 0.0995 or value == 0 else 1
    return f"{100 * value:.{digits}f}\u00a0%"


def reading(metric: MetricInfo, value: float, *, unit: bool = True) -> str:
    """A metric's value: ``33.5 dB``, ``0.971``, ``identical`` for an infinite one, a dash where there is none."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "identical"
    digits = 3 if abs(value) < 9.9995 and not metric.unit else 1
    return f"{value:.{digits}f}" + (f"\u00a0{metric.unit}" if unit and metric.unit else "")


def first_fidelity(comparison: Comparison) -> MetricInfo | None:
    """The metric that the page leads with: the first that compares with the uncached picture."""
    return next((metric for metric in comparison.metrics if metric.fidelity), None)
