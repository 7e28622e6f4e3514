"""Steps that are skipped whole: the velocity is forecast, and made good for once the next one is computed.

A plain Euler solver moves the picture by ``interval * velocity`` at each step. Where steps are skipped, the velocity of
each is taken from the straight line in sigma through the last two that were computed. When the next one is computed, it
is known how far off that line was, and the line between it and the one before is the better guess for all the steps
between. The difference is one multiple of one tensor, the surprise, and is added to the computed velocity, so
that the picture is where the better line would have brought it. That is the predictor and the corrector of a multistep
solver (Adams), each of one order more than its points, at no pass of the model more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from h2gen.cache.summary import relative_change


class Velocities:
    """The last two computed velocities of a picture, each with its sigma, and what was skipped since the last.

    Args:
        measured: whether ``take_surprise`` will be asked for.
    """

    def __init__(self, measured: bool = False) -> None:
        self._measured = measured
        self._values: deque[tuple[float, torch.Tensor]] = deque(maxlen=2)
        self._moment = 0.0
        self._surprise: tuple[torch.Tensor, float] | None = None

    def __len__(self) -> int:
        return len(self._values)

    @property
    def owing(self) -> bool:
        """Whether steps were skipped that are to be made good for."""
        return self._moment != 0

    def forecast(self, sigma: float, interval: float | None = None) -> torch.Tensor:
        """The velocity of a skipped step: on the line through the last two, or the last itself where it is alone.

        Args:
            sigma: of the step, 1 to 0.
            interval: how far the step moves the picture along its velocity, in sigma, negative; None where that is
                not known, or not all that the solver does.
        """
        if interval is not None:
            self._moment += interval * (sigma - self._values[-1][0])
        return self._on_line(sigma, *(velocity for _, velocity in self._values))

    def keep(self, velocity: torch.Tensor, sigma: float, interval: float | None = None) -> torch.Tensor:
        """Remember a computed velocity, in the place of the older one, or of one at the same sigma.

        The tensor itself is kept, not a copy; nobody may write to it.

        Args:
            velocity: ``(1, N_img, C)``.
            sigma: of its step.
            interval: as in ``forecast``.

        Returns:
            The velocity, made good for the steps that were skipped since the last one.
        """
        moment, self._moment, self._surprise = self._moment, 0.0, None
        corrected = velocity
        if self._values and self._values[-1][0] == sigma:
            self._values.pop()  # a solver that calls the model twice at one sigma: two points that make no line
        measuring = self._measured and len(self._values) == 2
        if self._values and (measuring or (moment and interval)):
            older, newer = self._values[0][0], self._values[-1][0]
            # In float32: corrections are multiples of small differences.
            expected = self._on_line(sigma, *(velocity.float() for _, velocity in self._values))
            if measuring:
                self._surprise = relative_change(velocity, expected), (sigma - newer) * (sigma - older)
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
        """At a sigma, on the line through what is kept, in the dtype that it is given in."""
        older, newer = velocities[0], velocities[-1]
        if len(velocities) == 1:
            return newer
        # Of half-precision tensors lerp rounds but once, where sums of multiples would round at each.
        ahead = self._values[-1][0] - sigma
        return torch.lerp(newer, older, -ahead / self.gap)

    def take_surprise(self) -> tuple[torch.Tensor, float] | None:
        """How far the last computed velocity was from what was expected, as a part of its size, and the product of its
        distances in sigma from the two before: once, and None where fewer than three were computed."""
        surprise, self._surprise = self._surprise, None
        return surprise


def curvatures(pictures: Sequence[Velocities]) -> dict[int, float]:
    """Half the second derivative of the velocity in sigma, as a part of its size, at the last computed step.

    Waits for the device where there is anything to read, once.

    Args:
        pictures: any number.

    Returns:
        By the place in them; without those for which there is nothing new.
    """
    found = {row: surprise for row, each in enumerate(pictures) if (surprise := each.take_surprise()) is not None}
    if not found:
        return {}
    changes = [change for change, _ in found.values()]
    read = [changes[0].item()] if len(changes) == 1 else torch.stack(changes).tolist()
    return {row: change / abs(square) for (row, (_, square)), change in zip(found.items(), read, strict=True)}


def velocity_in(output: Any) -> torch.Tensor:
    """The velocity, ``(B, N_img, C)``, of a forward pass's output, which is a tuple or an object with ``sample``."""
    velocity: torch.Tensor = output[0]
    return velocity


def with_velocity(output: Any, velocity: torch.Tensor) -> Any:
    """An output of the same kind with another velocity."""
    if isinstance(output, tuple):
        return (velocity, *output[1:])
    return replace(output, sample=velocity)
