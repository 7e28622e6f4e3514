"""How a model would be loaded on this machine, before it is; loads torch only where there may be a GPU."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from h2gen.models.catalogue import Checkpoint
from h2gen.models.check_loading import check_loading
from h2gen.models.facts import facts_of
from h2gen.models.fit_memory import Available, as_loaded, cache_line, host_line, needed_on_cpu
from h2gen.models.footprint import Work
from h2gen.models.host_memory import free_host_memory
from h2gen.models.load_options import LoadOptions, unheeded_limit
from h2gen.models.memory_needed import MemoryNeeded, memory_needed

_SIGNS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri")
"""Files of the drivers of NVIDIA's GPUs (in Windows' Linux too), of AMD's and of others."""


def lines_here(checkpoint: Checkpoint, options: LoadOptions, work: Work) -> list[str]:
    """The lines that loading a model would print here; on a CPU also what it needs, except for a bundled model.

    Args:
        checkpoint: of the model.
        options: how to load it.
        work: what would be made with it.

    Raises:
        UsageError: it cannot be loaded so; see ``check_loading``.
    """
    device, cache, fit = _loading(checkpoint, options, work)
    if device == "cpu" and checkpoint.kind == "bundled":
        fit = None
    return [line for line in (unheeded_limit(options, device.split(":")[0]), cache, fit) if line is not None]


def fit_here(checkpoint: Checkpoint, options: LoadOptions, work: Work) -> str | None:
    """How loading a model would fit here, and on a CPU what it needs; None if its sizes are not known.

    The arguments and errors are those of ``lines_here``.
    """
    return _loading(checkpoint, options, work)[2]


def _loading(checkpoint: Checkpoint, options: LoadOptions, work: Work) -> tuple[str, str | None, str | None]:
    """The device; a line if main memory is too small for what a GPU's cache keeps there; what ``fit_here`` returns."""
    refused = check_loading(checkpoint, options)
    device = _device(options)
    if device == "cpu":
        return device, None, _on_cpu(checkpoint, options, work)
    import torch

    from h2gen.models.devices import choose_dtype
    from h2gen.models.place import fit_of

    where = torch.device(device)
    work = replace(work, value=choose_dtype(options.dtype, where).itemsize)
    needed = _needed(checkpoint, work.value)
    if needed is None:
        return device, None, None
    cache = cache_line(needed.parts, work, free_host_memory()) if work.host_tokens else None
    if options.memory == "none" or options.offload != "auto" or options.devices > 1:
        return device, cache, None
    stored = str(checkpoint.location).lower().endswith(".gguf")
    parts = as_loaded(needed.parts, options, work.value)
    return device, cache, str(fit_of(parts, options, where, work, quantizable=not stored, without=refused))


def _device(options: LoadOptions) -> str:
    """The device that a model would be loaded onto."""
    if is_cpu(options.device):
        return "cpu"
    from h2gen.models.devices import choose_device

    return str(choose_device(options.device))


def _needed(checkpoint: Checkpoint, value: int) -> MemoryNeeded | None:
    facts = facts_of(checkpoint)
    return None if facts is None else memory_needed(checkpoint, facts, value)


def is_cpu(device: str) -> bool:
    """Whether a device is the CPU, as far as this is known without torch."""
    return device.split(":")[0] == "cpu" or (device == "auto" and not may_have_gpu())


def may_have_gpu() -> bool:
    """Whether this machine may have a GPU that torch can use; where it cannot, torch need not be asked."""
    return sys.platform != "linux" or any(map(os.path.exists, _SIGNS))


def _on_cpu(checkpoint: Checkpoint, options: LoadOptions, work: Work) -> str | None:
    size = 2 if options.dtype not in ("auto", "fp32", "float32") else 4
    needed = _needed(checkpoint, size)
    if needed is None:
        return None
    work, available = replace(work, value=size), Available("cpu", free_host_memory())
    need = needed_on_cpu(needed.parts, options, work)
    fits = f"Memory: on the CPU the model needs {need}, out of {available}."
    return host_line(need, work, available) or fits
