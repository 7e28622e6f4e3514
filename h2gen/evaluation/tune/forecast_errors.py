"""The error that each run of skipped steps adds to the image, computed from inner products between steps.

At step j the solver moves the image by ``interval_j`` times the velocity. Forecasting a tensor ``x_j`` (the velocity,
or a stage's residual) from the last two computed steps, ``i1 < i2``, at order 1 in sigma, is

    x_j ~ x_i2 + a_j (x_i2 - x_i1),   a_j = (sigma_j - sigma_i2) / (sigma_i2 - sigma_i1)

with ``a_j`` limited as the cache limits it; the fraction of the line that the cache will learn to follow is not
predicted. The errors of the steps between two computed ones add up, as vectors, to the displacement at the end of the
run. If the cache corrects for it there, what remains is the error of the line between both ends of the run, whose
``a_j`` is ``(sigma_j - sigma_i2) / (sigma_end - sigma_i2)``, towards ``x_end``. The remainder is added to the
uncorrected displacement, which the computed step at the end still sees: ranking by only the remainder gives far worse
plans.

All of it is linear in the x, so its norm follows from their Gram matrix, for all triples (i1, i2, end) at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2gen.cache.forecast import FARTHEST
from h2gen.errors import SettingError

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class SolverPasses:
    """The forward passes of one image, in order, as its solver uses them.

    Args:
        sigmas: ``(n,)``, of each pass, from 1 to 0.
        intervals: ``(n,)``, >= 0: how far the image moves along the velocity of each pass.

    Raises:
        SettingError: the two differ in length, or are empty.
    """

    sigmas: tuple[float, ...]
    intervals: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.intervals) or not self.sigmas:
            raise SettingError(
                f"There are {len(self.sigmas)} sigmas and {len(self.intervals)} intervals; give one interval per "
                "sigma, and at least one of each."
            )

    def __len__(self) -> int:
        return len(self.sigmas)


def displacements(
    gram: Matrix,
    passes: SolverPasses,
    *,
    order: int = 1,
    farthest: float = FARTHEST,
    corrected: bool = False,
    gains: Sequence[float] | Matrix | None = None,
) -> Matrix:
    """The norm of the displacement that each run of forecast steps leaves behind.

    Exact, up to rounding, as long as the other steps are as they were recorded.

    Args:
        gram: ``(n, n)`` inner products of the tensor between steps.
        passes: the n passes.
        order: 0 reuses the tensor of the last computed step, 1 extrapolates the last two linearly.
        farthest: limit of the extrapolation, in multiples of the distance between its two points.
        corrected: whether the cache corrects for a run at the computed step where it ends. The error is then the
            norm there plus the norm of what remains.
        gains: ``(n,)``, change of the velocity per change of the tensor at each step; 1 if omitted.

    Returns:
        ``(n + 1, n, n + 1)``: ``[i1 + 1, i2, end]`` is the norm for steps i2 + 1 to end - 1 forecast from i1 and i2,
        ``[0, i2, end]`` if nothing was computed before i2 (order 0 then); NaN unless i1 < i2 < end.

    Raises:
        SettingError: the Gram matrix is not ``(n, n)``.
    """
    count = len(passes)
    gram = np.asarray(gram, np.float64)
    if gram.shape != (count, count):
        raise SettingError(f"{count} steps need a Gram matrix of {count} by {count}, not {gram.shape}.")
    sigmas = np.asarray(passes.sigmas, np.float64)
    weights = np.asarray(passes.intervals, np.float64)
    if gains is not None:
        weights = weights * np.asarray(gains, np.float64)
    # Prefix sums: everything below is a sum over steps i2 + 1 .. end - 1, the difference of two of them.
    whole = _prefix(_prefix(weights[:, None] * gram * weights[None, :], 0), 1)  # <P, P> of ranges of steps
    with_step = _prefix(gram * weights[None, :], 1)  # [i, end]: <x_i, sum of w_j x_j over j < end>
    mass = _prefix(weights, 0)

    last, end = np.arange(count)[:, None], np.arange(count + 1)[None, :]
    start = np.minimum(last + 1, end)
    squared_sum = whole[end, end] - whole[start, end] - whole[end, start] + whole[start, start]
    amount = mass[end] - mass[start]  # sum of w_j
    on_last = with_step[last, end] - with_step[last, start]

    first = np.arange(count)[:, None, None]
    along = extrapolations(sigmas, farthest) * weights
    along[:, np.arange(count)[:, None] >= np.arange(count)[None, :]] = 0  # steps up to i2 are not part of the run
    slope = _prefix(along, 2)  # sum of w_j a_j
    if order == 0:
        slope = np.zeros_like(slope)
    on_first = with_step[first, end[None]] - with_step[first, start[None]]
    own = np.diag(gram)
    near, far = amount[None] + slope, slope  # D = P - near x_i2 + far x_i1
    squared = (
        squared_sum[None]
        - 2 * near * on_last[None]
        + 2 * far * on_first
        + near**2 * own[None, :, None]
        - 2 * near * far * gram[:, :, None]
        + far**2 * own[:, None, None]
    )
    alone = squared_sum - 2 * amount * on_last + amount**2 * own[:, None]
    result: Matrix = np.sqrt(np.maximum(np.concatenate([alone[None], squared]), 0.0))
    if corrected:
        left = _between(gram, sigmas, weights, squared_sum, with_step, on_last, amount)
        result[:, :, :-1] += np.sqrt(np.maximum(left, 0.0))[None]
    steps = np.arange(count)
    forward = (steps[None, :, None] < np.arange(count + 1)[None, None, :]) & (
        np.arange(-1, count)[:, None, None] < steps[None, :, None]
    )
    result[~np.broadcast_to(forward, result.shape)] = np.nan
    return result


def _between(
    gram: Matrix,
    sigmas: Matrix,
    weights: Matrix,
    squared_sum: Matrix,
    with_step: Matrix,
    on_last: Matrix,
    amount: Matrix,
) -> Matrix:
    """Squared norms ``[i2, end]``, end < n, if the steps between are on the line from i2 to end."""
    count = len(sigmas)
    steps = np.arange(count)
    moments = _prefix(weights * sigmas, 0)
    start = np.minimum(steps + 1, count)[:, None]
    span = sigmas[None, :] - sigmas[:, None]
    weighted = moments[None, :count] - moments[start] - sigmas[:, None] * amount[:, :count]
    to_end = np.divide(weighted, span, out=np.zeros((count, count)), where=span != 0)  # sum of w_j a_j
    to_last = amount[:, :count] - to_end
    on_end = with_step[steps, steps][None, :] - with_step[steps[None, :], start]
    own = np.diag(gram)
    return (
        squared_sum[:, :count]
        - 2 * to_last * on_last[:, :count]
        - 2 * to_end * on_end
        + to_last**2 * own[:, None]
        + 2 * to_last * to_end * gram
        + to_end**2 * own[None, :]
    )


def extrapolations(sigmas: Matrix, farthest: float = FARTHEST) -> Matrix:
    """The ``a_j`` of all triples of steps, ``(n, n, n)``: from the first and second to the third.

    0 if the first two have the same sigma, which a solver that visits it twice (Heun) produces: two points at one
    sigma define no line. The cache then extrapolates from the value before them, which is not known here.
    """
    span = sigmas[None, :] - sigmas[:, None]  # sigma_i2 - sigma_i1
    way = sigmas[None, None, :] - sigmas[None, :, None]  # sigma_j - sigma_i2
    ratio = np.divide(way, span[:, :, None], out=np.zeros((len(sigmas),) * 3), where=span[:, :, None] != 0)
    return np.minimum(ratio, farthest)


def _prefix(values: Matrix, axis: int) -> Matrix:
    """Sums of the values before each index: one longer than the input, starting at 0."""
    before: Any = np.zeros([1 if i == axis else size for i, size in enumerate(values.shape)])
    return np.concatenate([before, np.cumsum(values, axis)], axis)
