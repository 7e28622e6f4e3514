"""How far one stage has moved from what it kept: measured, added up, and looked ahead to. Host numbers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

CALM = 0.75
"""A step is skipped unseen where the change looked ahead to stays below so much of the threshold."""


@dataclass
class Gauge:
    """Changes of one stage's indicator along a trajectory.

    ``sigma`` is where the indicator that is kept was taken, ``spent`` the changes added up before it, and ``rate`` the
    last measured change for a unit of sigma, None as long as there is none.
    """

    sigma: float = 0.0
    spent: float = 0.0
    rate: float | None = None

    def measure(self, change: float, sigma: float) -> float:
        """Take in the change from the kept indicator to one at ``sigma``.

        Returns:
            What is compared with the threshold: the change, and what was spent before it.
        """
        distance = abs(self.sigma - sigma)
        if distance > 0 and math.isfinite(change):
            self.rate = change / distance
        return self.spent + change

    def move(self, sigma: float, spent: float) -> None:
        """The indicator at ``sigma`` is kept from now on, after so much was spent: nothing where it was computed."""
        self.sigma, self.spent = sigma, spent

    def ahead(self, sigma: float) -> float | None:
        """What ``measure`` would return at ``sigma`` if the change went on at its last rate; None without one."""
        return None if self.rate is None else self.spent + self.rate * abs(self.sigma - sigma)


def is_calm(ahead: float | None, tau: float) -> bool:
    """Whether a stage need not even be probed, from the change that was looked ahead to."""
    return ahead is not None and ahead < CALM * tau
