"""How residuals are kept between steps: as they are, in a smaller dtype, or in main memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from h2gen.cache.main_memory import InMainMemory

Values = tuple[torch.Tensor, ...]

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Packed:
    """One tensor, kept elsewhere or in fewer bits.

    ``cpu`` gives back the same values, at the price of copies to main memory and back. ``bf16`` leaves half-precision
    tensors as they are. ``fp8`` has one scale per token, which its largest channel decides, and keeps 3 bits of each
    value's mantissa.

    Args:
        tensor: ``(B, N, D)``.
        how: ``cpu``, ``bf16`` or ``fp8``.
    """

    def __init__(self, tensor: torch.Tensor, how: str) -> None:
        self._dtype = tensor.dtype
        self._scale: torch.Tensor | None = None
        self._kept: Any
        if how == "cpu":
            self._kept = InMainMemory(tensor)
        elif how == "bf16":
            self._kept = tensor.to(torch.bfloat16) if tensor.dtype.itemsize > 2 else tensor
        else:
            self._scale = tensor.abs().amax(-1, keepdim=True).float().clamp_min(1e-30) / _LARGEST
            self._kept = (tensor / self._scale).to(torch.float8_e4m3fn)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What is kept."""
        kept = self._kept.tensor if isinstance(self._kept, InMainMemory) else self._kept
        return (kept,) if self._scale is None else (kept, self._scale)

    def fetch(self) -> None:
        """Begin to bring it back, if it is in main memory."""
        if isinstance(self._kept, InMainMemory):
            self._kept.fetch()

    def let_go(self) -> None:
        """Drop what was fetched and is not needed."""
        if isinstance(self._kept, InMainMemory):
            self._kept.let_go()

    def unpacked(self) -> torch.Tensor:
        """The tensor, on its device and in its dtype."""
        if isinstance(self._kept, InMainMemory):
            return self._kept.take()
        kept: torch.Tensor = self._kept
        return kept.to(self._dtype) if self._scale is None else (kept.float() * self._scale).to(self._dtype)


class PackedValues:
    """The last few values of a history, like a ``collections.deque`` with ``maxlen``.

    Args:
        maxlen: the number of values.
        how: see ``Packed``.
    """

    def __init__(self, maxlen: int, how: str) -> None:
        self.maxlen, self._how = maxlen, how
        self._kept: deque[tuple[Packed, ...]] = deque(maxlen=maxlen)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Values:
        return tuple(each.unpacked() for each in self._kept[index])

    def __setitem__(self, index: int, values: Values) -> None:
        self._kept[index] = self._packed(values)

    def __iter__(self) -> Iterator[Values]:
        return (self[index] for index in range(len(self)))

    def fetch(self) -> None:
        """Begin to bring all of them back, if they are in main memory."""
        for each in self._kept:
            for packed in each:
                packed.fetch()

    def let_go(self) -> None:
        """Drop what was fetched and is not needed."""
        for each in self._kept:
            for packed in each:
                packed.let_go()

    def append(self, values: Values) -> None:
        self._kept.append(self._packed(values))

    def _packed(self, values: Values) -> tuple[Packed, ...]:
        return tuple(Packed(each, self._how) for each in values)
