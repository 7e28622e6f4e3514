"""MeanCache (arXiv 2601.19961): average velocities from cached displacement, on a peak-suppressed shortest path.

Implemented from the method's description and its authors' published code for Qwen-Image. The average velocity from t to
s is estimated as ``v_t + (s - t) J``. J is how far the average velocity from an earlier r to t is from the velocity at
r, divided by ``t - r``; r is a number of steps, the span, before t. Calibration measures on uncached trajectories how
far the estimate is from the true average velocity, for each span; the smallest error is the cost of a pair of steps,
taken to a power so that no single skip is bad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from h2gen.evaluation.peers.paths import Costs
from h2gen.evaluation.peers.skipping import Forecaster

SPANS = (1, 2, 3, 4, 5)
"""Steps back to r; at 1 the velocity is held."""


def average_velocity(velocities: Sequence[torch.Tensor], sigmas: Sequence[float], start: int, end: int) -> torch.Tensor:
    """Between two steps, of an Euler solver: the displacement over the difference of the sigmas."""
    way = sum(velocities[step] * (sigmas[step + 1] - sigmas[step]) for step in range(start, end))
    assert isinstance(way, torch.Tensor)
    return way / (sigmas[end] - sigmas[start])


def slope(
    moved: Sequence[torch.Tensor], sigmas: Sequence[float], step: int, span: int, at_start: torch.Tensor
) -> torch.Tensor:
    """J at a step.

    Args:
        moved: the velocities that the solver used at the steps before it.
        sigmas: of all steps.
        step: the one at t.
        span: the number of steps from r to it.
        at_start: the velocity at r.
    """
    start = step - span
    return (average_velocity(moved, sigmas, start, step) - at_start) / (sigmas[step] - sigmas[start])


def edge_costs(velocities: Sequence[torch.Tensor], sigmas: Sequence[float]) -> Costs:
    """Mean absolute error of the estimated average velocity, ``(spans, T + 1, T + 1)``; infinite if there is none.

    Args:
        velocities: of an uncached trajectory, one per step.
        sigmas: one more.
    """
    steps = len(velocities)
    costs = np.full((len(SPANS), steps + 1, steps + 1), np.inf)
    for start in range(steps):
        slopes = {
            span: slope(velocities, sigmas, start, span, velocities[start - span])
            for span in SPANS
            if 1 < span <= start
        }
        way = torch.zeros_like(velocities[start])
        for end in range(start + 1, steps + 1):
            way = way + velocities[end - 1] * (sigmas[end] - sigmas[end - 1])
            interval = sigmas[end] - sigmas[start]
            off = way / interval - velocities[start]
            for place, span in enumerate(SPANS):
                if end == start + 1:
                    costs[place, start, end] = 0.0
                elif span == 1 or span in slopes:
                    error = off if span == 1 else off - interval * slopes[span]
                    costs[place, start, end] = error.abs().mean().item()
    return costs


class MeanVelocity(Forecaster):
    """Fills skipped steps with average velocities.

    Args:
        sigmas: of all steps, and the end.
        computed: the computed steps.
        spans: by computed step, the span for the steps up to the next one.
        whole: use one estimate from each computed step to the next, as in the paper; otherwise estimate anew at each
            skipped step, as the authors' code does.
    """

    def __init__(self, sigmas: Sequence[float], computed: Sequence[int], spans: Mapping[int, int], whole: bool) -> None:
        self._sigmas, self._spans, self._whole = sigmas, spans, whole
        self._next = dict(zip(computed, [*computed[1:], len(sigmas) - 1], strict=True))
        self._known: list[torch.Tensor] = []
        """By step, the velocity there: computed, or estimated."""
        self._moved: list[torch.Tensor] = []
        """By step, the velocity that the solver uses there."""
        self._span = 1
        self._dtype = torch.float32

    def keep(self, step: int, value: torch.Tensor) -> torch.Tensor:
        self._dtype, self._span = value.dtype, self._spans[step]
        end = self._next[step]
        self._known.append(value.float())
        if not self._whole or end == step + 1:
            self._moved.append(self._known[-1])
            return value
        self._moved.append(self._estimate(step, end))
        return self._moved[-1].to(self._dtype)

    def fill(self, step: int) -> torch.Tensor:
        self._known.append(self._moved[-1])
        self._moved.append(self._known[-1] if self._whole else self._estimate(step, step + 1))
        if not self._whole:
            self._known[-1] = self._moved[-1]
        return self._moved[-1].to(self._dtype)

    def _estimate(self, step: int, end: int) -> torch.Tensor:
        """The average velocity from a step to another one, given the velocity at the first."""
        span, velocity = min(self._span, step), self._known[step]
        if span < 2:
            return velocity
        found = slope(self._moved, self._sigmas, step, span, self._known[step - span])
        return velocity + (self._sigmas[end] - self._sigmas[step]) * found
