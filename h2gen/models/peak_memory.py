"""The most memory that making a picture took: as torch's allocator counts it on a GPU, or of the process on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from h2gen.models.host_memory import peak_host_memory

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that was in use at a time.

    Args:
        bytes: how much.
        of: ``allocated`` by torch on the GPU while the picture was made, with the weights that were there; or
            ``resident`` in main memory, of the whole process since it began.
    """

    bytes: int
    of: str


def begin_peak(device: torch.device) -> None:
    """Begin to watch what is allocated on a GPU; on a CPU nothing has to be done."""
    import torch

    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> PeakMemory | None:
    """The peak since ``begin_peak``, or of the process; None where it is not known, as on Apple's GPUs."""
    import torch

    if device.type in ("cuda", "xpu"):
        return PeakMemory(int(getattr(torch, device.type).max_memory_allocated(device)), "allocated")
    peak = peak_host_memory() if device.type == "cpu" else None
    return None if peak is None else PeakMemory(peak, "resident")
