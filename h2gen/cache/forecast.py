"""What is added when a stage is reused: its last residual, or a fraction of the line through its last two.

Each computed step shows what fraction of its line the stage followed since the last one: the least-squares step along
the secant. If that was less than half, the next extrapolation is shortened; if the stage turned round, it is left out.

Values belong to a batch of pictures, each of which may last have been computed at a different step. Works on plain
tensors and host numbers: it knows no model and never makes the host wait for the device.

Source: h2gen's own. The line is the first-order forecast of TaylorSeer, arXiv 2503.06923.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from h2gen.cache.agree import Ranks
from h2gen.cache.batch import Rows, each, replaced, rows_of
from h2gen.cache.keep import PackedValues, Values
from h2gen.cache.progress import part_followed, progress

FARTHEST = 0.5
"""How far a line is extended beyond its second point, as a part of the distance between its points; beyond that the
value is constant. Of 1/2, 0.7, 1 and no limit, and of curved or damped lines, this was the closest on the bundled model
for nearly every plan tried: by 1 to 10 dB of PSNR above no limit, and by 1 to 10 above reuse."""


def extrapolation(older: float, newer: float, sigma: float) -> float:
    """How far to extend the line from ``older`` through ``newer``, as a part of the distance between the two.

    The value at ``sigma`` is forecast as ``new + extrapolation * (new - old)``.

    Args:
        older, newer: the sigmas of two computed values, not the same.
        sigma: beyond ``newer``, seen from ``older``.
    """
    return min((sigma - newer) / (newer - older), FARTHEST)


class ResidualHistory:
    """The last computed values, each with its sigma: ``order + 1`` of them at most.

    Order 0 forecasts that nothing changes, which is the paper's reuse. Order 1 extends the line in sigma
    through the last two values up to ``FARTHEST``, shortened by ``part_followed`` once a third value was computed; it
    is like order 0 while there is only one.

    Its memory at FLUX.1's size (1024x1024: 4096 image and 512 text tokens of 3072 channels in bfloat16), for each pass
    of true guidance: the structure stage keeps 27 MiB per value, the detail stage, whose text is not needed any more,
    24 MiB; so 51 MiB at order 0 and 102 MiB at order 1. A velocity is 0.5 MiB.

    Args:
        order: 0 or 1.
        how: ``device`` keeps the tensors themselves; otherwise see ``Packed``.
    """

    def __init__(self, order: int, how: str = "device") -> None:
        self._values: Any = deque(maxlen=order + 1) if how == "device" else PackedValues(order + 1, how)
        self._sigmas: deque[list[float]] = deque(maxlen=order + 1)
        self._progress: torch.Tensor | None = None
        """``progress`` of each picture, ``(B,)``, when it was last computed with a line to compare with."""
        self._whole: list[float] = []
        """What it would have been on the line, by picture."""

    def __bool__(self) -> bool:
        """Whether there is anything to forecast from."""
        return bool(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def fetch(self) -> None:
        """Begin to bring the values back from main memory, if they are there: they will probably be needed soon."""
        if isinstance(self._values, PackedValues):
            self._values.fetch()

    def let_go(self) -> None:
        """Drop what was fetched and not needed."""
        if isinstance(self._values, PackedValues):
            self._values.let_go()

    def has_line(self, row: int) -> bool:
        """Whether one picture of the batch has two points to draw a line through."""
        return len(self._values) > 1 and self._sigmas[0][row] != self._sigmas[-1][row]

    def keep(
        self,
        values: Values,
        sigma: float,
        rows: Rows | None = None,
        own: torch.Tensor | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Remember what was computed, replacing the oldest if there is no room, or a value at the same sigma.

        The tensors themselves are kept, not copies; they must not be written to.

        Args:
            values: one or more tensors, of the same number and shapes each time; the last one holds the image tokens.
            sigma: 0 to 1; ignored at order 0.
            rows: the pictures of the batch that were computed; None for all, which is also how a history begins.
            own, ranks: see ``progress``.
        """
        count = len(self._sigmas[-1]) if self._sigmas else values[0].shape[0]
        rows = range(count) if rows is None else rows
        # A solver may call the model twice at one sigma: two points without a line.
        moved = [row for row in rows if self._sigmas and self._sigmas[-1][row] != sigma]
        self._learn(values[-1], sigma, rows, [row for row in moved if self.has_line(row)], own, ranks)
        if len(moved) == count or not self._values:
            self._append(values, [sigma] * count)
            return
        if moved and self._values.maxlen == 2:
            newer, at = self._values[-1], self._sigmas[-1]
            if len(self._values) == 1:
                self._append(newer, list(at))
            else:
                pairs = zip(self._values[0], newer, strict=True)
                self._values[0] = tuple(replaced(old, (moved, rows_of(new, moved))) for old, new in pairs)
                for row in moved:
                    self._sigmas[0][row] = at[row]
        newer = self._values[-1]
        self._values[-1] = tuple(replaced(old, (rows, new)) for old, new in zip(newer, values, strict=True))
        for row in rows:
            self._sigmas[-1][row] = sigma

    def _append(self, values: Values, sigmas: list[float]) -> None:
        self._values.append(values)
        self._sigmas.append(sigmas)

    def _learn(
        self,
        value: torch.Tensor,
        sigma: float,
        rows: Rows,
        lined: Rows,
        own: torch.Tensor | None,
        ranks: Ranks | None,
    ) -> None:
        """Compare what was computed for some pictures, those in ``lined``, with their lines."""
        if not lined:
            return
        computed = rows_of(value, [rows.index(row) for row in lined])
        older, newer = (rows_of(values[-1], lined) for values in self._values)
        learned, count = progress(computed, newer, older, own, ranks), len(self._sigmas[-1])
        known = learned.new_ones(count) if self._progress is None else self._progress
        self._progress = replaced(known, (lined, learned))
        self._whole = self._whole or [1.0] * count
        for row in lined:
            older_sigma, newer_sigma = self._sigmas[0][row], self._sigmas[-1][row]
            self._whole[row] = (sigma - newer_sigma) / (newer_sigma - older_sigma)

    def forecast(self, sigma: float, rows: Rows | None = None) -> Values:
        """The values at a sigma, for all pictures of the batch or for some.

        One kernel per tensor, and three on a tensor of ``(B,)``; none if the last values themselves are the forecast.
        If the pictures were computed at different steps, that many for each picture.
        """
        rows = range(len(self._sigmas[-1])) if rows is None else rows
        newer = tuple(rows_of(values, rows) for values in self._values[-1])
        if not any(self.has_line(row) for row in rows):
            return newer
        older = tuple(rows_of(values, rows) for values in self._values[0])
        weights = self._weights(sigma, rows)
        # Of half-precision tensors lerp rounds only once, where sums of multiples would round each time.
        if isinstance(weights, torch.Tensor):
            weights = weights[:, None, None]
            return tuple(torch.lerp(new, old, weights.to(new.dtype)) for new, old in zip(newer, older, strict=True))
        if len(set(weights)) == 1:
            return tuple(torch.lerp(new, old, weights[0]) for new, old in zip(newer, older, strict=True))
        return tuple(
            torch.cat([torch.lerp(*row) for row in zip(each(new), each(old), weights, strict=True)])
            for new, old in zip(newer, older, strict=True)
        )

    def _weights(self, sigma: float, rows: Rows) -> torch.Tensor | list[float]:
        """The weight of each picture's older value: host numbers until something was learned, then ``(B,)``."""
        lines = [self._weight(row, sigma) for row in rows]
        if self._progress is None:
            return lines
        learned, wholes = rows_of(self._progress, rows), [self._whole[row] for row in rows]
        if len({*zip(wholes, lines, strict=True)}) == 1:
            return part_followed(learned, wholes[0]) * lines[0]
        parts = zip(each(learned), wholes, lines, strict=True)
        return torch.cat([part_followed(one, whole) * line for one, whole, line in parts])

    def _weight(self, row: int, sigma: float) -> float:
        """The weight of a picture's older value."""
        return -extrapolation(self._sigmas[0][row], self._sigmas[-1][row], sigma) if self.has_line(row) else 0.0
