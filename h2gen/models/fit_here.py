"""How a model would be loaded on this machine, before it is; loads torch only where there may be a GPU."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from h2gen.models.catalogue import Checkpoint
from h2gen.models.choices import memory_limit
from h2gen.models.facts import facts_of
from h2gen.models.fit_memory import Available, host_line, quantized
from h2gen.models.footprint import Work, footprint
from h2gen.models.host_memory import free_host_memory
from h2gen.models.load_options import LoadOptions
from h2gen.models.memory_needed import memory_needed
from h2gen.models.quantization import find_quantization, refused_offloads
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
        DeviceError: there is no such device.
    """
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
    hows = find_quantization(options.quantize), find_quantization(options.quantize_text)
    factors = [1.0 if how is None else how.bits / 8 / size for how in hows]
    refused = {
        way
        for how, blocks in zip(hows, (True, False), strict=True)
        if how is not None
        for way in refused_offloads(how.package, blocks=blocks)
    }
    parts = [quantized(part, *factors) for part in needed.parts]
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
    line = host_line(needed.parts, work, available)
    need = gigabytes(footprint(needed.parts, work)["none"])
    return line or f"Memory: on the CPU the model needs {need} of main memory, out of {available}."
