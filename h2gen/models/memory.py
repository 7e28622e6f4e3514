"""Which device computes, in which dtype, and what waits in main memory meanwhile."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from h2gen.errors import DeviceError
from h2gen.models.choices import DTYPES, OFFLOADS
from h2gen.wording import did_you_mean

DEVICES = ("cuda", "mps", "xpu", "cpu")
HEADROOM = 1.25
"""Weights take this many times their size once activations and the allocator's rounding are counted."""


def devices() -> dict[str, int]:
    """The kinds of device that torch can use here, best first, each with how many there are."""
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "cpu": 1,
    }
    return {kind: count for kind, count in counts.items() if count}


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name such as "cuda", "cuda:1" or "cpu"; "auto" is the first of cuda, mps, xpu and cpu there is.

    Raises:
        DeviceError: there is no such device.
    """
    present = devices()
    if name == "auto":
        return torch.device(next(iter(present)))
    match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", name)
    if match is None or match[1] not in DEVICES:
        known = ("auto", *DEVICES)
        raise DeviceError(f"There is no device {name!r}{did_you_mean(name, known)} Give one of {', '.join(known)}.")
    kind, index = match[1], int(match[2] or 0)
    if index >= present.get(kind, 0):
        here = ", ".join(kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in present.items())
        raise DeviceError(f"The device {name!r} is not there; torch {torch.__version__} finds {here}.")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name such as "bf16"; "auto" is bf16 on a GPU that has it, fp16 on another, fp32 on the CPU.

    Raises:
        DeviceError: it is no dtype, or the device cannot compute in it.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if device.type != "mps" and _has_bf16(device) else torch.float16
    if name not in DTYPES:
        known = ("auto", *DTYPES)
        raise DeviceError(f"There is no dtype {name!r}{did_you_mean(name, known)} Give auto, bf16, fp16 or fp32.")
    dtype: torch.dtype = getattr(torch, DTYPES[name])
    if dtype is torch.bfloat16 and not _has_bf16(device):
        raise DeviceError(f"The device {str(device)!r} cannot compute in bf16; give fp16 or fp32.")
    return dtype


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        # Older GPUs emulate it, many times slower than fp16.
        return torch.cuda.get_device_capability(device)[0] >= 8 or torch.version.hip is not None
    if device.type == "mps":
        try:
            torch.zeros(1, dtype=torch.bfloat16, device=device)
        except (RuntimeError, TypeError):
            return False
    return True


def pick_offload(free_bytes: int, component_bytes: Mapping[str, int]) -> str:
    """What has to wait in main memory: "none" where all parts fit, "model" where the largest does, else "group".

    Args:
        free_bytes: of the device.
        component_bytes: each part's weights.
    """
    if sum(component_bytes.values()) * HEADROOM <= free_bytes:
        return "none"
    return "model" if max(component_bytes.values()) * HEADROOM <= free_bytes else "group"


def check_offload(mode: str, device: torch.device) -> None:
    """See that a way of offloading can be used, before anything is loaded.

    Raises:
        DeviceError: the mode is unknown, or there is no GPU to offload from.
    """
    if mode not in OFFLOADS:
        raise DeviceError(f"There is no offloading {mode!r}{did_you_mean(mode, OFFLOADS)} Give {', '.join(OFFLOADS)}.")
    if device.type == "cpu" and mode not in ("none", "auto"):
        raise DeviceError(f"Offloading ({mode}) frees a GPU's memory, and the device is the CPU; leave it out.")


def apply_offload(pipe: Any, mode: str, device: torch.device) -> str:
    """Put a pipeline where it computes. Returns the mode in use, which is never "auto".

    Args:
        pipe: a pipeline in main memory.
        mode: "none": all on the device; "model": one part at a time; "group": one block at a time; "sequential": one
            layer at a time; "auto": the first of none, model and group that fits.
        device: where it computes.

    Raises:
        DeviceError: the mode is unknown, or there is no GPU to offload from.
    """
    check_offload(mode, device)
    if device.type == "cpu":
        mode = "none"
    if mode == "auto":
        mode = pick_offload(free_memory(device), component_bytes(pipe))
    if mode == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif mode == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif mode == "group":
        offload_groups(pipe, device)
    else:
        pipe.to(device)
    return mode


def offload_groups(pipe: Any, device: torch.device) -> None:
    """Fetch the transformer block by block, and every other part layer by layer, when it is their turn.

    Blocks are the transformer's alone: text encoders keep theirs too deep to be found, and would be fetched whole, and
    an autoencoder is entered by ``decode``, which a group of its whole ``forward`` would never hear of.
    """
    from diffusers.hooks import apply_group_offloading

    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            blocks = name == "transformer"
            apply_group_offloading(
                part,
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="block_level" if blocks else "leaf_level",
                num_blocks_per_group=1 if blocks else None,
                # With a stream a block fetches the next while it runs: where a cache skips the next block, that one
                # would stay on the device, and the block after it would never be fetched.
                use_stream=False,
            )


def component_bytes(pipe: Any) -> dict[str, int]:
    """Bytes of weights and buffers in each part of a pipeline."""
    return {
        name: sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "xpu":
        return int(torch.xpu.mem_get_info(device)[0])
    return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator and Apple's GPU raise a plain RuntimeError.
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
