"""How many steps may be skipped: the step-size control of ODE solvers, by an error that costs nothing to know.

At each computed step the velocity is compared with what the line through the two before it expected. The velocity's
curvature, half its second derivative, follows from the difference. By it the line on which skipped steps lie is off,
and the integral of that over them is what they displace the picture by. Host numbers alone.

Source: error estimates of predictor-corrector pairs, as in Hairer, Norsett, Wanner, "Solving Ordinary Differential
Equations I", III.7; that they choose the steps of a cache is h2gen's own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bend:
    """What a picture's last computed step says of the way ahead.

    Args:
        sigma: of that step.
        curvature: half the second derivative of the velocity in sigma there, as a part of its size.
        before: None where a run of skipped steps is made good for, so that it lies on the line between its ends; else
            the distance in sigma between the two points through which the line goes on.
    """

    sigma: float
    curvature: float
    before: float | None = None

    def displacement(self, sigma: float) -> float:
        """How far the picture is off, in sigma times the velocity's size, where all is skipped until ``sigma``.

        The integral over the run of ``curvature * s * (distance - s)``, or of ``curvature * s * (before + s)``.
        """
        distance = self.sigma - sigma
        if self.before is None:
            return self.curvature * distance**3 / 6
        return self.curvature * (distance**3 / 3 + distance**2 * self.before / 2)
