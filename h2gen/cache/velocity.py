"""Skipped steps: the velocity is forecast, and corrected once the next one is computed.

A plain Euler solver moves the picture by ``interval * velocity`` at each step. The velocity of a skipped step is
extrapolated along the line in sigma through the last two computed ones, but only by a fraction of the change that the
line predicts. The fraction is learned: each computed velocity shows what fraction of the change predicted for it really
happened, and the next forecasts use that fraction. At 1 the forecast is the whole line, at 0 the last velocity is held.
It is measured for each picture and is not a setting: with strong guidance, or early in a picture, it is near 0; where
the velocity changes smoothly, it is near 1.

Once the next velocity is computed, the error of its forecast is known, and the line between it and the one before is a
better forecast for all steps in between. The two forecasts differ by a multiple of one tensor, that error. It is added
to the computed velocity, so that the picture ends up where the better line would have brought it. Part of a large error
is due to the picture having been displaced, and the model already makes up for that part: the correction is divided by
one plus the relative size of the error. These are the predictor and the corrector of a multistep solver (Adams),
without an extra pass of the model. Models return a velocity for the tokens of reference pictures too, which is not
used: neither the fraction nor the size of the error depends on it.

Source: predictors and correctors as in Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", III.1. The
learned fraction, a least-squares fit to the velocity just computed, is h2gen's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from h2gen.cache.agree import Ranks
from h2gen.cache.pfs import relative_change


class VelocityHistory:
    """A picture's last computed velocity, its difference from the one before, and what was skipped since.

    Args:
        measured: whether ``take_forecast_error`` will be called.
    """

    def __init__(self, measured: bool = False) -> None:
        self._measured = measured
        self._last: tuple[float, torch.Tensor] | None = None
        """The last computed velocity, after its sigma."""
        self._way: tuple[float, torch.Tensor] | None = None
        """The difference of the last two computed velocities, after the difference of their sigmas."""
        self._followed: torch.Tensor | None = None
        """The fraction of the change predicted by the last line that really happened: a scalar from 0 to 1, float32, on
        the velocities' device; None until there was a line."""
        self._skipped_moment = 0.0
        """The sum over skipped steps of their interval times their distance in sigma from the last computed step."""
        self._forecast_error: tuple[torch.Tensor, float] | None = None

    def __bool__(self) -> bool:
        """Whether there is anything to forecast from."""
        return self._last is not None

    @property
    def pending_correction(self) -> bool:
        """Whether steps were skipped that the next computed one will correct."""
        return self._skipped_moment != 0

    def forecast(self, sigma: float, interval: float | None = None) -> torch.Tensor:
        """The velocity of a skipped step; the last computed one itself until the fraction to extrapolate by is known.

        Args:
            sigma: of the step, 1 to 0.
            interval: how far the step moves the picture along its velocity, in sigma, negative; None if that is not
                known, or not all that the solver does. Steps without it are not corrected.
        """
        assert self._last is not None
        if interval is not None:
            self._skipped_moment += interval * (sigma - self._last[0])
        return self._forecast(sigma, *self._last)

    def keep(
        self, velocity: torch.Tensor, sigma: float, interval: float | None = None, own: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Remember a computed velocity, replacing one at the same sigma.

        The tensor itself is kept, not a copy; it must not be written to.

        Args:
            velocity: ``(1, N_img, C)``, or of any shape that begins with 1 if there is no ``own``.
            sigma: of its step.
            interval: as in ``forecast``.
            own: ``(N_img,)``, 1 for the picture's own tokens and 0 for those of reference pictures; None if all are
                its own.

        Returns:
            The velocity, corrected for the steps that were skipped since the last one.
        """
        moment, self._skipped_moment, self._forecast_error = self._skipped_moment, 0.0, None
        corrected, last, way = velocity, self._last, self._way
        self._last = sigma, velocity
        if last is None:
            return velocity
        moved, distance = velocity - last[1], sigma - last[0]
        if distance == 0:  # a solver that calls the model twice at one sigma: two points without a line
            self._way = None if way is None else (way[0], way[1] + moved)
            return velocity
        if self._measured or (moment and interval):
            # In float32: corrections are multiples of small differences.
            forecast = self._forecast(sigma, last[0], last[1].float())
            error = relative_change(_masked(velocity, own), _masked(forecast, own))
            if self._measured:
                self._forecast_error = error, abs(distance)
            if moment and interval:
                # If the model's velocities are all zero, the error is 0 / 0, which counts as 0.
                weight = 1 + moment / (distance * interval) / (1 + error.nan_to_num(0.0))
                corrected = torch.lerp(forecast, velocity.float(), weight).to(velocity.dtype)
        if way is not None:
            self._followed = _part_followed(_masked(way[1], own), moved, distance / way[0])
        self._way = distance, moved
        return corrected

    def _forecast(self, sigma: float, at: float, velocity: torch.Tensor) -> torch.Tensor:
        """The forecast at ``sigma`` from the last velocity, which was computed at ``at``, in that velocity's dtype."""
        if self._followed is None or self._way is None:
            return velocity
        covered, way = self._way
        # One kernel, which rounds once.
        return torch.addcmul(velocity, way.to(velocity.dtype), self._followed, value=(sigma - at) / covered)

    def take_forecast_error(self) -> tuple[torch.Tensor, float] | None:
        """The relative error of the last computed velocity's forecast, and the distance in sigma that it spanned.

        Returned only once; None if there was no forecast, as for the first velocity.
        """
        error, self._forecast_error = self._forecast_error, None
        return error


def _masked(tensor: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    """A tensor with zeros for the tokens of reference pictures."""
    return tensor if own is None else tensor * own[:, None]


def _part_followed(way: torch.Tensor, moved: torch.Tensor, ahead: float) -> torch.Tensor:
    """The fraction of a line's predicted change that comes closest to the change that happened, from 0 to 1.

    The line predicts ``ahead * way`` where ``moved`` happened, so by least squares the fraction is
    ``<moved, way> / <way, way> / ahead``.
    """
    flat = way.flatten().float()
    part = torch.dot(moved.flatten().float(), flat) / torch.dot(flat, flat) / ahead
    return part.nan_to_num_(0.0).clamp_(0, 1)  # 0 / 0 if the last two velocities are equal


def error_rates(pictures: Sequence[VelocityHistory], ranks: Ranks | None = None) -> dict[int, float]:
    """How fast the error of forecasts grows: the last one's relative error over the distance in sigma that it spanned.

    Waits for the device if there is anything to read, once.

    Args:
        pictures: any number.
        ranks: the processes that make the pictures together, if they do.

    Returns:
        By index in ``pictures``, without those that have nothing new.
    """
    found = {row: error for row, each in enumerate(pictures) if (error := each.take_forecast_error()) is not None}
    if not found:
        return {}
    changes = [change for change, _ in found.values()]
    if ranks is not None:
        read = ranks.of_first(torch.stack(changes)).tolist()
    else:
        read = [changes[0].item()] if len(changes) == 1 else torch.stack(changes).tolist()
    return {row: change / distance for (row, (_, distance)), change in zip(found.items(), read, strict=True)}
