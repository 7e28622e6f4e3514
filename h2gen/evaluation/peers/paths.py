"""Chooses the steps to compute: shortest paths with a given number of steps, by the costs of skipping those between."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]


def longest_gap(steps: int) -> int:
    """The maximum distance of two computed steps: 30 % of all steps, as in the published code of DPCache."""
    return max(1, math.ceil(0.3 * steps))


def cheapest_path(costs: Costs, computed: int, gap: int) -> tuple[int, ...]:
    """The computed steps, starting with step 0, with the smallest sum of costs.

    Args:
        costs: ``(T + 1, T + 1)``; at ``[i, j]`` that of skipping all steps between i and j. T is the end.
        computed: their number, from 1 to T.
        gap: the maximum distance of two of them; it is raised if no path keeps to it.
    """
    end = len(costs) - 1
    places = np.arange(end + 1)
    away = places[None, :] - places[:, None]
    open_to = np.where((away > 0) & (away <= gap), costs, np.inf)
    best = np.full(end + 1, np.inf)
    best[0] = 0.0
    came_from = []
    for _ in range(computed):
        total = best[:, None] + open_to
        came_from.append(total.argmin(0))
        best = total.min(0)
    if not math.isfinite(best[end]):
        return cheapest_path(costs, computed, gap + 1)
    path = [end]
    for table in reversed(came_from):
        path.append(int(table[path[-1]]))
    return tuple(reversed(path[1:]))


def cheapest_path_of_pairs(costs: Costs, computed: int, gap: int, first: int) -> tuple[int, ...]:
    """The same where a cost depends on the two computed steps before: ``costs[i, j, k]``, ``(T, T, T + 1)``.

    Args:
        first: number of first steps, at least 2, that are always computed and cost nothing.
    """
    steps = len(costs)
    if computed <= first:
        return tuple(range(computed))
    places = np.arange(steps + 1)
    near = (places[None, :] > places[:steps, None]) & (places[None, :] - places[:steps, None] <= gap)
    open_to = np.where(near[None], costs, np.inf)
    best = np.full((steps, steps), np.inf)
    best[first - 2, first - 1] = 0.0
    came_from = []
    for _ in range(computed - first):
        total = best[:, :, None] + open_to[:, :, :steps]
        came_from.append(total.argmin(0))
        best = total.min(0)
    total = best + open_to[:, :, steps]
    if not math.isfinite(total.min()):
        return cheapest_path_of_pairs(costs, computed, gap + 1, first)
    older, newer = (int(place) for place in np.unravel_index(total.argmin(), total.shape))
    path = [newer, older]
    for table in reversed(came_from):
        path.append(int(table[path[-1], path[-2]]))
    # The path ends at the pair that it started from, the last two of the first steps.
    return tuple(range(first - 2)) + tuple(reversed(path))
