"""How many steps may be skipped: the step-size control of ODE solvers, by an error that costs nothing to know.

At each computed step the velocity is compared with what the line through the two before it expected. The velocity's
curvature, half its second derivative, follows from the difference. By it the line on which skipped steps lie is off,
and the integral of that over them is what they displace the picture by. Host numbers alone.

Source: error estimates of predictor-corrector pairs, as in Hairer, Norsett, Wanner, "Solving Ordinary Differential
Equations I", III.7; that they choose the steps of a cache is h2gen's own.
"""

from __future__ import annotations

from collections.abc import Sequence


def displacement(curvature: float, distance: float, before: float | None = None) -> float:
    """How far the picture is off after a run of skipped steps, in sigma times the velocity's size.

    Args:
        curvature: half the second derivative of the velocity in sigma, as a part of its size.
        distance: of the run, in sigma.
        before: None where the run is made good for, so that it lies on the line between its ends, which is off by
            ``curvature * s * (distance - s)``; else the distance between the two points before it through which its
            line goes on, which is off by ``curvature * s * (before + s)``. Integrated over the run.
    """
    if before is None:
        return curvature * distance**3 / 6
    return curvature * (distance**3 / 3 + distance**2 * before / 2)


def next_computed(
    step: int, sigmas: Sequence[float], curvature: float, tolerance: float, before: float | None = None
) -> int:
    """The step to compute after ``step``: the farthest whose displacement stays within the tolerance.

    The last step is always computed, so that all that was skipped is made good for. A curvature that is not finite
    allows no skip.

    Args:
        step: from 0; it was computed.
        sigmas: of all steps, falling.
        curvature: as it was at ``step``.
        tolerance: displacement that is allowed, in sigma times the velocity's size.
        before: as in ``displacement``.
    """
    ahead = step + 1
    while ahead + 1 < len(sigmas) and displacement(curvature, sigmas[step] - sigmas[ahead + 1], before) <= tolerance:
        ahead += 1
    return ahead
