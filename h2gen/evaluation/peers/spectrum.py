"""Spectrum (arXiv 2603.01623): the last layer's features as Chebyshev polynomials in time, at growing intervals.

Implemented from the paper and its authors' published code, which also mixes in a line through the last two features.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebvander

from h2gen.evaluation.peers.l2p import combined
from h2gen.evaluation.peers.skipping import Forecaster


def window_steps(steps: int, warmup: int, window: float, growth: float) -> tuple[int, ...]:
    """The computed steps: the warm-up, then one at the end of each window; windows grow each time."""
    computed = list(range(min(warmup, steps)))
    skipped = 0
    for step in range(warmup, steps):
        if (skipped + 1) % math.floor(window) == 0:
            computed.append(step)
            skipped, window = 0, round(window + growth, 3)
        else:
            skipped += 1
    return tuple(computed)


@lru_cache(maxsize=64)
def schedule(computed: int, steps: int, warmup: int) -> tuple[int, ...]:
    """A schedule with a given number of computed steps, as near as possible to the authors' windows.

    The growth of the windows is searched first; a first window other than the authors' 2, or another warm-up than the
    one given, is used only if no growth leads to that number.
    """
    warmups = sorted(range(1, steps + 1), key=lambda each: (abs(each - warmup), -each))
    for begin in warmups:
        for window in (2.0, 1.0):
            for growth in np.arange(0, steps, 0.05):
                found = window_steps(steps, begin, window, float(growth))
                if len(found) == computed:
                    return found
                if len(found) < computed:
                    break
    raise AssertionError(f"no schedule of {computed} steps among {steps}")


class Chebyshev(Forecaster):
    """A ridge regression on all computed features so far.

    Args:
        steps: denoising steps of the image; time goes from -1 at the first to 1 after the last.
        degree: of the polynomials.
        ridge: the regression's penalty.
        share: of the polynomials in the forecast; the rest is the line through the last two.
    """

    def __init__(self, steps: int, degree: int, ridge: float, share: float) -> None:
        self._steps, self._degree, self._ridge, self._share = steps, degree, ridge, share
        self._at: list[int] = []
        self._features: list[torch.Tensor] = []
        self._dtype = torch.float32

    def keep(self, step: int, value: torch.Tensor) -> torch.Tensor:
        self._dtype = value.dtype
        self._at.append(step)
        self._features.append(value.float())
        return value

    def fill(self, step: int) -> torch.Tensor:
        design, here = self._basis(*self._at), self._basis(step)[0]
        inner = design.T @ design + self._ridge * np.eye(self._degree + 1)
        by = self._share * (design @ np.linalg.solve(inner, here))
        line = 1 - self._share
        if len(self._at) > 1:
            ahead = (step - self._at[-1]) / (self._at[-1] - self._at[-2])
            by[-1] += line * (1 + ahead)
            by[-2] -= line * ahead
        else:
            by[-1] += line
        return combined(self._features, by).to(self._dtype)

    def _basis(self, *steps: int) -> np.ndarray:
        """The polynomials at some steps, ``(len(steps), degree + 1)``."""
        return chebvander(np.array(steps) * 2 / self._steps - 1, self._degree)
