"""How residuals are kept between steps: as they are, in a smaller dtype, or in main memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch

Values = tuple[torch.Tensor, ...]

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Packed:
    """One tensor, kept elsewhere or in fewer bits.

    ``cpu`` gives back the same values, at the price of a copy from main memory; on CUDA it is queued like any kernel,
    and the host does not wait for it. ``bf16`` leaves half-precision tensors as they are. ``fp8`` has one scale per
    token, which its largest channel decides, and keeps 3 bits of each value's mantissa.

    Args:
        tensor: ``(B, N, D)``.
        how: ``cpu``, ``bf16`` or ``fp8``.
    """

    def __init__(self, tensor: torch.Tensor, how: str) -> None:
        self._dtype, self._device = tensor.dtype, tensor.device
        self._scale: torch.Tensor | None = None
        if how == "cpu":
            self._kept = _in_main_memory(tensor)
        elif how == "bf16":
            self._kept = tensor.to(torch.bfloat16) if tensor.dtype.itemsize > 2 else tensor
        else:
            self._scale = tensor.abs().amax(-1, keepdim=True).float().clamp_min(1e-30) / _LARGEST
            self._kept = (tensor / self._scale).to(torch.float8_e4m3fn)

    def unpacked(self) -> torch.Tensor:
        """The tensor, on its device and in its dtype."""
        if self._scale is not None:
            return (self._kept.float() * self._scale).to(self._dtype)
        return self._kept.to(self._device, self._dtype, non_blocking=self._device.type == "cuda")


def _in_main_memory(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    # Pinned, so that the copy is queued; it is read by a copy that is queued later on the same stream.
    kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return kept.copy_(tensor, non_blocking=True)


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

    def append(self, values: Values) -> None:
        self._kept.append(self._packed(values))

    def _packed(self, values: Values) -> tuple[Packed, ...]:
        return tuple(Packed(each, self._how) for each in values)
