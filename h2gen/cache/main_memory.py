"""Tensors in main memory, copied there and back while the device computes."""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager
from typing import Any, cast

import torch


class InMainMemory:
    """A copy of a tensor in main memory.

    On a device with streams it is pinned, and copies in both directions are queued on a stream of their own: kernels
    run meanwhile, and the host waits for nothing. Elsewhere they are ordinary copies.

    Args:
        tensor: on its device. It may be freed at once, but not be written to.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._device = tensor.device
        self._coming: tuple[torch.Tensor, Any] | None = None
        """The tensor on its device, and the event after which it is there."""
        stream = copy_stream(self._device)
        if stream is None:
            self.tensor = tensor.to("cpu")
            return
        self.tensor = _pinned_like(tensor)
        stream.wait_stream(_computing(self._device))
        with _on(stream, self._device):
            _copy(self.tensor, tensor)
        tensor.record_stream(stream)  # its memory is not used again before it has been copied

    def fetch(self) -> None:
        """Begin to bring it back to its device."""
        stream = copy_stream(self._device)
        if stream is None or self._coming is not None:
            return
        with _on(stream, self._device):  # after the copy to main memory, which was queued on the same stream
            here = torch.empty(self.tensor.shape, dtype=self.tensor.dtype, device=self._device)
            _copy(here, self.tensor)
            self._coming = here, stream.record_event()

    def take(self) -> torch.Tensor:
        """The tensor on its device, for kernels that are queued from now on."""
        self.fetch()
        if self._coming is None:
            return self.tensor.to(self._device)
        (here, arrived), self._coming = self._coming, None
        computing = _computing(self._device)
        computing.wait_event(arrived)
        here.record_stream(computing)
        return here

    def let_go(self) -> None:
        """Drop what was fetched and not taken."""
        self._coming = None


@functools.cache
def copy_stream(device: torch.device) -> Any:
    """The stream of a device on which copies are queued; None if it has none."""
    module = torch.get_device_module(device)
    return module.Stream(device) if device.type != "cpu" and hasattr(module, "Stream") else None


def _computing(device: torch.device) -> Any:
    """The stream that computes."""
    return torch.get_device_module(device).current_stream(device)


def _on(stream: Any, device: torch.device) -> AbstractContextManager[Any]:
    return cast(AbstractContextManager[Any], torch.get_device_module(device).stream(stream))


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"Residuals cannot be pinned in main memory ({reason}); --cache-memory cpu copies them more slowly.",
            RuntimeWarning,
            stacklevel=2,
        )
        return torch.empty(tensor.shape, dtype=tensor.dtype)
