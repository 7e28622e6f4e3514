"""How long a forward pass took, without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Times from its creation to ``stop``: on CUDA by events, which queue like kernels, else by the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[Any, Any] | None = None
        self._seconds: float | None = None
        self._device = device
        if device.type == "cuda":
            event: Any = torch.cuda.Event
            self._events = event(enable_timing=True), event(enable_timing=True)
            self._record(0)
        self._start = time.perf_counter()

    def stop(self) -> None:
        if self._events is not None:
            self._record(1)
        else:
            if self._device.type != "cpu":  # no events as on CUDA: wait, rather than time the launching of kernels
                torch.accelerator.synchronize(self._device)
            self._seconds = time.perf_counter() - self._start

    def _record(self, which: int) -> None:
        assert self._events is not None
        # The model's device need not be the current one.
        self._events[which].record(torch.cuda.current_stream(self._device))

    @property
    def ready(self) -> bool:
        """Whether the device has reached the end, so that ``seconds`` does not wait."""
        return self._events is None or bool(self._events[1].query())

    @property
    def seconds(self) -> float:
        """Seconds from start to stop; waits for the device if it is not there yet."""
        if self._seconds is None:
            assert self._events is not None
            self._events[1].synchronize()
            self._seconds = self._events[0].elapsed_time(self._events[1]) / 1000
        return self._seconds
