"""L2P (arXiv 2604.26365): a skipped step's output is a linear combination of all outputs before, learned per step.

Implemented from the paper's abstract and its authors' published code. They find the weights by gradient descent, which
starts from holding the last output and is stopped early; here they are the least-squares solution with a penalty on the
distance from that start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from h2gen.evaluation.peers.skipping import Forecaster

Matrix = NDArray[np.float64]

PUBLISHED = {
    11: (0, 1, 2, 4, 6, 9, 14, 23, 30, 37, 44),
    10: (0, 1, 2, 4, 7, 14, 23, 31, 38, 45),
    9: (0, 1, 2, 4, 9, 17, 26, 35, 43),
    8: (0, 1, 2, 4, 10, 20, 31, 41),
    7: (0, 1, 2, 4, 12, 24, 38),
    6: (0, 1, 2, 4, 16, 32),
}
"""The authors' computed steps for FLUX.1 at 50 steps, by their number."""

START = (0, 1, 2, 4)
"""How most of them begin."""


def spread(computed: int, steps: int, starts: Sequence[int]) -> tuple[int, ...]:
    """The computed steps: the given ones at the start, and the rest evenly spaced up to the end.

    If too many are computed to leave gaps at the start, the first steps are all computed.
    """
    starts = starts[:computed]
    if computed - len(starts) > steps - 1 - starts[-1]:
        starts = range(len(starts))
    rest = computed - len(starts)
    gap = (steps - starts[-1]) / (rest + 1)
    return (*starts, *(starts[-1] + int(gap * place + 0.5) for place in range(1, rest + 1)))


def products(outputs: Sequence[torch.Tensor]) -> Matrix:
    """The inner products of a trajectory's outputs, ``(T, T)``, each divided by their number of elements."""
    flat = torch.stack([output.float().flatten() for output in outputs])
    return ((flat @ flat.T) / flat.shape[1]).double().cpu().numpy()


def weights(inner: Matrix, known: Sequence[int], step: int, ridge: float) -> Matrix:
    """The weights that combine known outputs, in order, into that of a step; ``(len(known),)``.

    Args:
        inner: the products of all outputs, averaged over trajectories.
        known: the steps before it whose outputs are combined.
        step: the one to forecast.
        ridge: penalty on the squared distance from holding the last one, relative to the outputs' mean square.
    """
    hold = np.zeros(len(known))
    hold[-1] = 1.0
    among = inner[np.ix_(known, known)]
    penalty = ridge * among.diagonal().mean()
    left = among + penalty * np.eye(len(known))
    right = inner[known, step] + penalty * hold
    solution: Matrix = np.linalg.lstsq(left, right, rcond=None)[0]
    return solution


class Linear(Forecaster):
    """Fills skipped steps with weighted sums.

    Args:
        rows: by skipped step, the steps that are combined, computed or forecast, and their weights.
    """

    def __init__(self, rows: Mapping[int, tuple[Sequence[int], Matrix]]) -> None:
        self._rows = rows
        self._used: list[torch.Tensor] = []
        self._dtype = torch.float32

    def keep(self, step: int, value: torch.Tensor) -> torch.Tensor:
        self._dtype = value.dtype
        self._used.append(value.float())
        return value

    def fill(self, step: int) -> torch.Tensor:
        known, by = self._rows[step]
        self._used.append(combined([self._used[place] for place in known], by))
        return self._used[-1].to(self._dtype)


def combined(values: Sequence[torch.Tensor], by: Sequence[float] | Matrix) -> torch.Tensor:
    """A weighted sum of tensors."""
    total = torch.zeros_like(values[0])
    for value, weight in zip(values, by, strict=True):
        total.add_(value, alpha=float(weight))
    return total
