"""Put a pipeline from main memory onto its device, in a way that fits; and say which."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch

from h2gen.families import family_of
from h2gen.models.catalogue import Checkpoint
from h2gen.models.choices import WAYS, memory_limit
from h2gen.models.facts import facts_of
from h2gen.models.fit_memory import Available, Fit, cache_line, choose_fit, host_line, needed_on_cpu
from h2gen.models.footprint import MEGAPIXEL, Part, Work, measure, width_of
from h2gen.models.host_memory import free_host_memory
from h2gen.models.load_options import LoadOptions
from h2gen.models.memory import apply_offload, free_memory, is_out_of_memory, stored_bytes
from h2gen.models.memory_needed import memory_needed
from h2gen.models.quantization import NONE

Say = Callable[[str], None]


def unsaid(_line: str) -> None:
    """Shows nothing."""


def place(
    pipe: Any,
    options: LoadOptions,
    device: torch.device,
    work: Work = MEGAPIXEL,
    say: Say = unsaid,
    without: Collection[str] = (),
) -> str:
    """Put a pipeline on its device. Returns the offloading in use, never "auto".

    If ``--offload auto`` chooses and memory runs out all the same, the next way is taken.

    Args:
        pipe: in main memory.
        options: how to load it.
        device: to compute on.
        work: what will be made.
        say: is called with each line for the user.
        without: ways of offloading that ``--offload auto`` must not choose.

    Raises:
        DeviceError: the device does not support the offloading.
        RuntimeError: memory does not suffice (see ``is_out_of_memory``).
    """
    if device.type == "cuda":
        _limit(memory_limit(options.memory), device)
    if device.type != "cpu" and work.host_tokens:
        line = cache_line(parts_of_pipe(pipe), work, free_host_memory())
        if line is not None:
            say(line)
    if options.offload != "auto":
        return apply_offload(pipe, options.offload, device)
    offload = "none"
    if device.type != "cpu" and options.memory != "none":
        floats = all(each.is_floating_point() for each in pipe.transformer.parameters())  # others are quantized already
        fit = fit_of(parts_of_pipe(pipe), options, device, work, quantizable=floats, without=without)
        say(str(fit))
        offload = fit.offload
    while True:
        try:
            return apply_offload(pipe, offload, device)
        except Exception as error:
            stronger = [way for way in WAYS[WAYS.index(offload) + 1 :] if way not in without]
            if not is_out_of_memory(error) or device.type == "cpu" or not stronger:
                raise
        offload = stronger[0]
        say(f"Out of memory on {device} while loading; trying again with --offload {offload}.")
        pipe.to("cpu")


_limited: set[int] = set()
"""The indices of the GPUs of which torch's allocator may not take everything."""


def _limit(limit: int | None, device: torch.device) -> None:
    """Let torch's allocator take at most so many bytes of a GPU; None takes back an earlier limit."""
    index = torch.cuda.current_device() if device.index is None else device.index  # torch wants the index here
    if limit is not None:
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), index)
        _limited.add(index)
    elif index in _limited:
        torch.cuda.set_per_process_memory_fraction(1.0, index)
        _limited.remove(index)


def fit_of(
    parts: list[Part],
    options: LoadOptions,
    device: torch.device,
    work: Work,
    *,
    quantizable: bool = True,
    without: Collection[str] = (),
) -> Fit:
    """How to load a model of these parts onto a GPU so that it fits.

    Args:
        parts: of the model, in bytes.
        options: how it is loaded otherwise.
        device: the GPU.
        work: what will be made.
        quantizable: whether its transformer is not quantized yet.
        without: ways that it cannot be loaded in.
    """
    host = None if device.type == "mps" else free_host_memory()  # Apple's GPUs use main memory
    available = Available(str(device), free_memory(device), memory_limit(options.memory), host)
    quantizable = quantizable and options.quantize == NONE
    return choose_fit(parts, work, available, quantizable=quantizable, without=without)


def parts_of_pipe(pipe: Any) -> list[Part]:
    """The parts of a loaded pipeline with their sizes in bytes."""
    found = []
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            tensors = (*part.named_parameters(), *part.named_buffers())
            kind = family_of(part).transformer if name == "transformer" else type(part).__name__
            config = getattr(part, "config", {})
            sizes = {key: stored_bytes(tensor) for key, tensor in tensors}
            width = width_of(config) if isinstance(config, dict) else 0  # in transformers it is no dictionary
            found.append(measure(kind, sizes, in_blocks=name == "transformer", width=width))
    return found


def check_host_memory(
    checkpoint: Checkpoint, options: LoadOptions, dtype: torch.dtype, work: Work = MEGAPIXEL, say: Say = unsaid
) -> None:
    """Before a model is loaded to compute on the CPU: say so if main memory is known not to suffice."""
    if checkpoint.kind == "bundled" or options.memory == "none":
        return
    facts = facts_of(checkpoint)
    needed = None if facts is None else memory_needed(checkpoint, facts, dtype.itemsize)
    if needed is not None:
        available = Available("cpu", free_host_memory())
        work = replace(work, value=dtype.itemsize)
        line = host_line(needed_on_cpu(needed.parts, options, work), work, available)
        if line is not None:
            say(line)
