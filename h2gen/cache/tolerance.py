"""How many steps may be skipped: the step-size control of ODE solvers, by an error that costs nothing to know.

At each computed step the velocity is compared with what the line through the two before it expected. The velocity's
curvature, half its second derivative, follows from the difference. By it the line between two computed steps is off,
and the integral of that over the steps between is what they displace the picture by. Host numbers alone.

Source: error estimates of predictor-corrector pairs, as in Hairer, Norsett, Wanner, "Solving Ordinary Differential
Equations I", III.7; that they choose the steps of a cache is h2gen's own.
"""

from __future__ import annotations

from collections.abc import Sequence


def displacement(curvature: float, distance: float) -> float:
    """How far the picture is off, in sigma times the velocity's size, after a way on the line between its ends.

    Of ``distance`` in sigma: the integral of ``curvature * s * (distance - s)`` over it.
    """
    return curvature * abs(distance) ** 3 / 6


def next_computed(step: int, sigmas: Sequence[float], curvature: float, tolerance: float) -> int:
    """The step to compute after ``step``: the farthest whose displacement stays within the tolerance.

    The last step is always computed, so that all that was skipped is made good for. A curvature that is not finite
    allows no skip.

    Args:
        step: from 0; it was computed.
        sigmas: of all steps, falling.
        curvature: as it was at ``step``.
        tolerance: displacement that is allowed, in sigma times the velocity's size.
    """
    ahead = step + 1
    while ahead + 1 < len(sigmas) and displacement(curvature, sigmas[step] - sigmas[ahead + 1]) <= tolerance:
        ahead += 1
    return ahead
