"""Skipped steps: the velocity is forecast, and corrected once the next one is computed.

A plain Euler solver moves the picture by ``interval * velocity`` at each step. The velocity of a skipped step is taken
from the straight line in sigma through the last two computed ones. Once the next velocity is computed, it is known how
far off that line was, and the line between it and the one before is a better guess for all steps in between. The
difference is one multiple of one tensor, the prediction error, and is added to the computed velocity, so that the
picture is where the better line would have brought it. These are the predictor and the corrector of a multistep solver
(Adams), each one order higher than its number of points, without an extra pass of the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from h2gen.cache.pfs import relative_change


class VelocityHistory:
    """The last two computed velocities of a picture with their sigmas, and what was skipped since the last one.

    Args:
        measured: whether ``take_prediction_error`` will be called.
    """

    def __init__(self, measured: bool = False) -> None:
        self._measured = measured
        self._values: deque[tuple[float, torch.Tensor]] = deque(maxlen=2)
        self._skipped_moment = 0.0
        """The sum over skipped steps of their interval times their distance in sigma from the last computed step."""
        self._prediction_error: tuple[torch.Tensor, float] | None = None

    def __len__(self) -> int:
        return len(self._values)

    @property
    def pending_correction(self) -> bool:
        """Whether steps were skipped that the next computed one will correct."""
        return self._skipped_moment != 0

    def forecast(self, sigma: float, interval: float | None = None) -> torch.Tensor:
        """The velocity of a skipped step: on the line through the last two, or the last itself if it is the only one.

        Args:
            sigma: of the step, 1 to 0.
            interval: how far the step moves the picture along its velocity, in sigma, negative; None if that is not
                known, or not all that the solver does. Steps without it are not corrected.
        """
        if interval is not None:
            self._skipped_moment += interval * (sigma - self._values[-1][0])
        return self._on_line(sigma, *(velocity for _, velocity in self._values))

    def keep(self, velocity: torch.Tensor, sigma: float, interval: float | None = None) -> torch.Tensor:
        """Remember a computed velocity, replacing the older one, or one at the same sigma.

        The tensor itself is kept, not a copy; it must not be written to.

        Args:
            velocity: ``(1, N_img, C)``.
            sigma: of its step.
            interval: as in ``forecast``.

        Returns:
            The velocity, corrected for the steps that were skipped since the last one.
        """
        moment, self._skipped_moment, self._prediction_error = self._skipped_moment, 0.0, None
        corrected = velocity
        if self._values and self._values[-1][0] == sigma:
            self._values.pop()  # a solver that calls the model twice at one sigma: two points without a line
        measuring = self._measured and len(self._values) == 2
        if self._values and (measuring or (moment and interval)):
            older, newer = self._values[0][0], self._values[-1][0]
            # In float32: corrections are multiples of small differences.
            expected = self._on_line(sigma, *(velocity.float() for _, velocity in self._values))
            if measuring:
                self._prediction_error = relative_change(velocity, expected), (sigma - newer) * (sigma - older)
            if moment and interval:
                weight = 1 + moment / ((sigma - newer) * interval)
                corrected = torch.lerp(expected, velocity.float(), weight).to(velocity.dtype)
        self._values.append((sigma, velocity))
        return corrected

    @property
    def gap(self) -> float:
        """The distance in sigma between the two that are kept."""
        return self._values[0][0] - self._values[-1][0]

    def _on_line(self, sigma: float, *velocities: torch.Tensor) -> torch.Tensor:
        """At a sigma, on the line through the kept velocities, which are given in the dtype to compute in."""
        older, newer = velocities[0], velocities[-1]
        if len(velocities) == 1:
            return newer
        # Of half-precision tensors lerp rounds only once, where sums of multiples would round each time.
        ahead = self._values[-1][0] - sigma
        return torch.lerp(newer, older, -ahead / self.gap)

    def take_prediction_error(self) -> tuple[torch.Tensor, float] | None:
        """How far the last computed velocity was from its prediction, relative to its size, and the product of its
        distances in sigma from the two velocities before. Only once; None if fewer than three were computed."""
        error, self._prediction_error = self._prediction_error, None
        return error


def curvatures(pictures: Sequence[VelocityHistory]) -> dict[int, float]:
    """Half the second derivative of the velocity in sigma, relative to its size, at the last computed step.

    Waits for the device if there is anything to read, once.

    Args:
        pictures: any number.

    Returns:
        By index in ``pictures``, without those that have nothing new.
    """
    found = {row: error for row, each in enumerate(pictures) if (error := each.take_prediction_error()) is not None}
    if not found:
        return {}
    changes = [change for change, _ in found.values()]
    read = [changes[0].item()] if len(changes) == 1 else torch.stack(changes).tolist()
    return {row: change / abs(square) for (row, (_, square)), change in zip(found.items(), read, strict=True)}
