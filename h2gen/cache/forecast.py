"""What a value that changes from step to step will be next, from what it was when it was computed last.

Plain tensors and host numbers: nothing here knows a model, and nothing makes the host wait for the device.
"""

from __future__ import annotations

from collections import deque

import torch

Values = tuple[torch.Tensor, ...]


FARTHEST = 0.5
"""A line is followed beyond its second point for so much of the distance between its points; from there on the value
stays. Of 1/2, 0.7, 1 and no limit, and of lines that bend or are damped, this was the closest on the bundled model for
nearly every plan tried: by 1 to 10 dB of PSNR above no limit, and by 1 to 10 above reuse."""


def lead(older: float, newer: float, sigma: float) -> float:
    """How far to follow the line from ``older`` through ``newer``, counted in the distance between the two.

    The value at ``sigma`` is forecast as ``new + lead * (new - old)``.

    Args:
        older, newer: the sigmas of two computed values, not the same.
        sigma: beyond ``newer``, seen from ``older``.
    """
    return min((sigma - newer) / (newer - older), FARTHEST)


class History:
    """The last values that were computed, each with the sigma it belongs to: ``order + 1`` of them at most.

    Order 0 forecasts that nothing changes, which is the paper's reuse; order 1 follows the straight line in sigma
    through the last two values, as far as ``FARTHEST``, and is of order 0 as long as there is but one.

    What it costs at FLUX.1's size (1024x1024: 4096 image and 512 text tokens of 3072 channels in bfloat16), for each
    pass of true guidance: the structure stage keeps 27 MiB a value, the detail stage, whose text nobody needs any
    more, 24 MiB; so 51 MiB at order 0 and 102 MiB at order 1. A velocity is 0.5 MiB.

    Args:
        order: 0 or 1.
    """

    def __init__(self, order: int) -> None:
        self._values: deque[tuple[float, Values]] = deque(maxlen=order + 1)

    def __bool__(self) -> bool:
        """Whether there is anything to forecast from."""
        return bool(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def keep(self, values: Values, sigma: float) -> None:
        """Remember what was computed, in the place of the oldest where there is no room, or of one at the same sigma.

        The tensors themselves are kept, not copies; nobody may write to them.

        Args:
            values: one or more tensors, of the same number and shapes each time.
            sigma: 0 to 1; at order 0 it does not matter.
        """
        if self._values and self._values[-1][0] == sigma:
            self._values.pop()  # a solver that calls the model twice at one sigma: two points that make no line
        self._values.append((sigma, values))

    def forecast(self, sigma: float) -> Values:
        """The values at a sigma; one kernel a tensor, or none where the last values themselves are the forecast."""
        newer_sigma, newer = self._values[-1]
        older_sigma, older = self._values[0]
        if len(self._values) == 1:
            return newer
        weight = -lead(older_sigma, newer_sigma, sigma)
        # Of half-precision tensors lerp rounds but once, where sums of multiples would round at each.
        return tuple(torch.lerp(new, old, weight) for new, old in zip(newer, older, strict=True))
