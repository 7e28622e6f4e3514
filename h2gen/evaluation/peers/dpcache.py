"""DPCache (arXiv 2602.22654): dynamic programming over the errors of a Taylor expansion of the last layer's features.

Implemented from published descriptions and code: the cost of skipping from step j to k, where i was computed before j,
is the sum of the mean absolute errors of the features that are forecast for the steps after j, up to and including k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from h2gen.evaluation.peers.paths import Costs
from h2gen.evaluation.peers.skipping import Forecaster


class Taylor(Forecaster):
    """TaylorSeer's expansion (arXiv 2503.06923), in steps: derivatives are differences of those at the last two steps.

    Args:
        order: the highest derivative; at 0 the last value is held.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._at = 0
        self._derivatives: list[torch.Tensor] = []
        self._dtype = torch.float32

    def keep(self, step: int, value: torch.Tensor) -> torch.Tensor:
        self._dtype = value.dtype
        now = [value.float()]
        for before in self._derivatives[: self._order]:
            now.append((now[-1] - before) / (step - self._at))
        self._derivatives, self._at = now, step
        return value

    def fill(self, step: int) -> torch.Tensor:
        away = step - self._at
        total = self._derivatives[0]
        for order, derivative in enumerate(self._derivatives[1:], 1):
            total = torch.add(total, derivative, alpha=away**order / math.factorial(order))
        return total.to(self._dtype)


def path_costs(features: Sequence[torch.Tensor], order: int) -> Costs:
    """``[i, j, k]``: the summed error of skipping from step j to k after i, ``(T, T, T + 1)``; infinite elsewhere.

    Step T, the end, has no features; they are extrapolated from the last ones. Derivatives at i are those of
    consecutive steps.

    Args:
        features: of an uncached trajectory, one float32 tensor per step.
        order: of the expansion.
    """
    steps = len(features)
    costs = np.full((steps, steps, steps + 1), np.inf)
    beyond = _after(features, range(max(0, steps - 1 - order), steps), order).fill(steps)
    known = [*features, beyond]
    for before in range(steps - 1):
        for step in range(before + 1, steps):
            forecast = _after(features, [*range(max(0, before - order + 1), before + 1), step], order)
            total = 0.0
            for following in range(step + 1, steps + 1):
                total += (forecast.fill(following) - known[following]).abs().mean().item()
                costs[before, step, following] = total
    return costs


def _after(features: Sequence[torch.Tensor], computed: Sequence[int], order: int) -> Taylor:
    """The expansion after some computed steps."""
    forecast = Taylor(order)
    for step in computed:
        forecast.keep(step, features[step])
    return forecast
