"""What steps do on the device: launches, waits, the kernels that take longest, and the time between kernels.

On the CPU, where there are no launches and nothing is waited for, torch's own operations stand for kernels, and
numbers that are read from tensors stand for waits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from tools.gpu.model import Caller
from tools.gpu.timing import Cache

MARK = "steps looked at"
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
WAITS = frozenset(
    {"cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy"}
    | {"cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize"}
)


class Kernel(NamedTuple):
    """One run of a kernel, in microseconds."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Profile:
    """What some steps did.

    Args:
        steps: how many.
        launches: of kernels and copies, in all steps.
        waits: of the host for the device.
        kernels: in order of their start.
    """

    steps: int
    launches: int
    waits: Counter[str]
    kernels: Sequence[Kernel]

    def slowest(self, count: int) -> list[tuple[str, float, float]]:
        """The kernels that take longest: name, share of all kernels' time, and runs per step."""
        seconds: dict[str, float] = defaultdict(float)
        runs: Counter[str] = Counter()
        for kernel in self.kernels:
            seconds[kernel.name] += kernel.end - kernel.start
            runs[kernel.name] += 1
        whole = sum(seconds.values()) or 1.0
        names = sorted(seconds, key=lambda name: -seconds[name])[:count]
        return [(name, seconds[name] / whole, runs[name] / self.steps) for name in names]

    def gaps(self) -> list[tuple[float, str, str]]:
        """The times in which no kernel ran, longest first: microseconds, and the kernels before and after."""
        found, latest = [], None
        for kernel in self.kernels:
            if latest is not None and kernel.start > latest.end:
                found.append((kernel.start - latest.end, latest.name, kernel.name))
            if latest is None or kernel.end > latest.end:
                latest = kernel
        return sorted(found, reverse=True)

    @property
    def span(self) -> float:
        """Microseconds from the first kernel's start to the last one's end."""
        return max(kernel.end for kernel in self.kernels) - self.kernels[0].start if self.kernels else 0.0


class _Between:
    """Looks at the steps from ``first`` to ``last``, counted from 0, of one call."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __call__(self, step: int) -> None:
        if step == self.first - 1:
            self.begin()
        elif step == self.last:
            self.end()

    def begin(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError


class _Profiled(_Between):
    def begin(self) -> None:
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profiler = profile(activities=[ProfilerActivity.CPU, *gpu])
        self.profiler.start()
        self.mark = record_function(MARK)
        self.mark.__enter__()

    def end(self) -> None:
        self.mark.__exit__(None, None, None)
        self.profiler.stop()


class _Strict(_Between):
    """Waiting for the device is an error."""

    def begin(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def end(self) -> None:
        torch.cuda.set_sync_debug_mode("default")


def look_at(call: Caller, cache: Cache, first: int, last: int, steps: int) -> Profile:
    """Profile the steps from ``first`` to ``last``, counted from 0, of a run of ``steps`` steps."""
    looking = _Profiled(first, last)
    with cache():
        call(steps, looking)
    events: list[Any] = list(looking.profiler.events())
    mark = next(event for event in events if event.name == MARK and event.device_type == DeviceType.CPU)
    inside = [
        event
        for event in events
        if event.device_type == DeviceType.CPU
        and mark.time_range.start <= event.time_range.start <= mark.time_range.end
    ]
    if call.scale.cuda:
        launches = sum(event.name.startswith(LAUNCHES) for event in inside)
        waits = Counter(event.name for event in inside if event.name in WAITS)
        ran = [event for event in events if event.device_type == DeviceType.CUDA and event.name != MARK]
    else:
        ran = [event for event in inside if event.name.startswith("aten::") and not _within_another(event)]
        launches = len(ran)
        waits = Counter(event.name for event in inside if event.name == "aten::_local_scalar_dense")
    kernels = sorted(Kernel(event.time_range.start, event.time_range.end, event.name) for event in ran)
    return Profile(last - first + 1, launches, waits, kernels)


def _within_another(event: Any) -> bool:
    parent = event.cpu_parent
    return parent is not None and parent.name.startswith("aten::")


def first_wait(call: Caller, cache: Cache, first: int, last: int, steps: int) -> str:
    """Where a step of these waits for the device, as torch's debug mode sees it; empty if none does."""
    if not call.scale.cuda:
        return ""
    try:
        with cache():
            call(steps, _Strict(first, last))
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        traceback, place = error.__traceback__, ""
        while traceback is not None:
            code = traceback.tb_frame.f_code
            place, traceback = f"{code.co_filename}:{traceback.tb_lineno} in {code.co_name}", traceback.tb_next
        return place
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""
