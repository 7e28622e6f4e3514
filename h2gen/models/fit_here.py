"""How a model would be loaded on this machine, before it is; loads torch only where there may be a GPU."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from h2gen.models.catalogue import Checkpoint
from h2gen.models.check_loading import check_loading
from h2gen.models.choices import memory_limit
from h2gen.models.facts import facts_of
from h2gen.models.fit_memory import Available, as_loaded, host_line, needed_on_cpu
from h2gen.models.footprint import Work
from h2gen.models.host_memory import free_host_memory
from h2gen.models.load_options import LoadOptions
from h2gen.models.memory_needed import memory_needed
from h2gen.wording import gigabytes

_SIGNS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri")
"""Files of the drivers of NVIDIA's GPUs (in Windows' Linux too), of AMD's and of others."""


def fit_here(checkpoint: Checkpoint, options: LoadOptions, work: Work) -> str | None:
    """The line that loading a model would print here, and on a CPU what it needs; None if its sizes are not known.

    Args:
        checkpoint: of the model.
        options: how to load it.
        work: what would be made with it.

    Raises:
        UsageError: it cannot be loaded so; see ``check_loading``.
    """
    refused = check_loading(checkpoint, options)
    facts = facts_of(checkpoint)
    if facts is None:
        return None
    kind = options.device.split(":")[0]
    if kind == "cpu" or (kind == "auto" and not may_have_gpu()):
        return _on_cpu(checkpoint, options, work)
    from h2gen.models.devices import choose_device, choose_dtype
    from h2gen.models.place import fit_of

    device = choose_device(options.device)
    if device.type == "cpu":
        return _on_cpu(checkpoint, options, work)
    size = choose_dtype(options.dtype, device).itemsize
    needed = memory_needed(checkpoint, facts, size)
    if needed is None or options.memory == "none":
        return None
    stored = str(checkpoint.location).lower().endswith(".gguf")
    parts = as_loaded(needed.parts, options, size)
    fit = fit_of(parts, options, device, replace(work, value=size), quantizable=not stored, without=refused)
    return str(fit) if options.offload == "auto" else None


def may_have_gpu() -> bool:
    """Whether this machine may have a GPU that torch can use; where it cannot, torch need not be asked."""
    return sys.platform != "linux" or any(map(os.path.exists, _SIGNS))


def _on_cpu(checkpoint: Checkpoint, options: LoadOptions, work: Work) -> str | None:
    size = 2 if options.dtype not in ("auto", "fp32", "float32") else 4
    facts = facts_of(checkpoint)
    needed = None if facts is None else memory_needed(checkpoint, facts, size)
    if needed is None:
        return None
    work, available = replace(work, value=size), Available("cpu", free_host_memory(), memory_limit(options.memory))
    need = needed_on_cpu(needed.parts, options, work)
    line = host_line(need, work, available)
    return line or f"Memory: on the CPU the model needs {gigabytes(need)} of main memory, out of {available}."
