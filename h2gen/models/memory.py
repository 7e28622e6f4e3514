"""Offloading: which parts of a model stay in main memory, and whether an error means that memory ran out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from h2gen.errors import DeviceError
from h2gen.models.choices import OFFLOADS
from h2gen.models.quantization import refused_offloads
from h2gen.models.text_first import keep, offload_text
from h2gen.wording import did_you_mean

if TYPE_CHECKING:
    from h2gen.models.offload_blocks import BlockOffload


def check_offload(mode: str, device: torch.device) -> None:
    """Check that an offloading mode can be used, before anything is loaded.

    Raises:
        DeviceError: the mode is unknown, or there is no GPU to offload from.
    """
    if mode not in OFFLOADS:
        raise DeviceError(
            f"There is no offloading mode {mode!r}{did_you_mean(mode, OFFLOADS)} Choose from {', '.join(OFFLOADS)}."
        )
    if device.type == "cpu" and mode not in ("none", "auto"):
        raise DeviceError(f"--offload {mode} saves GPU memory, but the device is the CPU; leave it out.")


def apply_offload(pipe: Any, mode: str, device: torch.device) -> str:
    """Put a pipeline on its device. Returns the mode in use.

    Args:
        pipe: a pipeline in main memory.
        mode: what is on the device at a time: "none" is everything, "text" all but text encoders or the other way
            round, "model" one part, "group" one block, "sequential" one layer. "auto" is for ``place`` to choose;
            here it is "none".
        device: to compute on.

    Raises:
        DeviceError: the mode is unknown, or there is no GPU to offload from.
    """
    check_offload(mode, device)
    mode = "none" if mode == "auto" else mode
    if mode == "text":
        offload_text(pipe, device)
    elif mode == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif mode == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif mode == "group":
        offload_groups(pipe, device)
    else:
        pipe.to(device)
    return mode


def offload_groups(pipe: Any, device: torch.device, *, ahead: bool = True) -> BlockOffload:
    """Load the transformer block by block, and every other part layer by layer, onto the device as they are needed.

    Only the transformer is split into blocks: diffusers does not find the blocks of text encoders, and would load a
    whole encoder at once; and an autoencoder is called by ``decode``, which a hook on its ``forward`` does not see.

    Args:
        pipe: a pipeline in main memory.
        device: to compute on.
        ahead: fetch each block of the transformer while the one before it runs, if the device can do both.

    Raises:
        DeviceError: there are weights that cannot be moved in this way.
    """
    from h2gen.models.offload_blocks import BlockOffload, stream_of

    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    for part in parts.values():
        if any(type(each).__name__ == "Int8Params" for each in part.parameters()):
            raise DeviceError(
                "Group offloading cannot move the 8-bit weights of bitsandbytes; use --offload model, or another "
                "quantization."
            )
    transformer = parts.pop("transformer")
    offload = BlockOffload(transformer, device, stream_of(device), ahead=ahead)
    for part in parts.values():
        _offload_layers(part, device)
        for module in (part, *part.children()):  # an autoencoder's ``decode`` skips its ``forward``, not its decoder's
            module.register_forward_pre_hook(offload.release)
    return offload


def _offload_layers(part: torch.nn.Module, device: torch.device) -> None:
    from diffusers.hooks import apply_group_offloading

    main_memory = torch.device("cpu")
    apply_group_offloading(part, onload_device=device, offload_device=main_memory, offload_type="leaf_level")


def refused_by(pipe: Any) -> set[str]:
    """The ways of offloading that the weights of a pipeline do not work with, however they came to be quantized."""
    refused: set[str] = set()
    for name, part in pipe.components.items():
        kinds = {type(each).__name__ for each in part.parameters()} if isinstance(part, torch.nn.Module) else set()
        if kinds & {"Params4bit", "Int8Params"}:
            blocks = name == "transformer" and "Int8Params" not in kinds
            refused.update(refused_offloads("bitsandbytes", blocks=blocks))
    return refused


def place_part(part: torch.nn.Module, pipe: Any, mode: str) -> None:
    """Put a part in main memory where the parts of a pipeline are, such as a ControlNet that is added to it.

    Args:
        part: of a pipeline on the parts of ``pipe``.
        pipe: is on its device.
        mode: its offloading, never "auto".
    """
    device = torch.device(pipe._execution_device)
    if mode == "none":
        part.to(device)
    elif mode == "text":
        keep(part, device)
    elif mode == "group":
        _offload_layers(part, device)
    else:
        import accelerate

        if mode == "model":  # a pipeline does this itself at the end of each call, with all of its parts
            accelerate.cpu_offload_with_hook(part, device)
        else:
            accelerate.cpu_offload(part, device, offload_buffers=True)


def stored_bytes(weight: torch.Tensor) -> int:
    """Bytes of a weight as it is stored: torchao's call themselves as large as what they stand for, and the scales of
    bitsandbytes' 4 bits are beside them.
    """
    inner, state = getattr(weight, "tensor_data_names", None), getattr(weight, "quant_state", None)
    if inner is not None:
        return sum(getattr(weight, name).nbytes for name in inner)
    return weight.nbytes + (0 if state is None else state.absmax.nbytes)


def component_bytes(pipe: Any) -> dict[str, int]:
    """Bytes of weights and buffers in each part of a pipeline."""
    return {
        name: sum(stored_bytes(tensor) for tensor in (*part.parameters(), *part.buffers()))
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }


def free_memory(device: torch.device) -> int:
    """Free bytes on a GPU, including those that torch still reserves but does not use, such as an earlier model's."""
    if device.type in ("cuda", "xpu"):
        gpu: Any = torch.get_device_module(device)
        unused = gpu.memory_reserved(device) - gpu.memory_allocated(device)
        return int(gpu.mem_get_info(device)[0]) + int(unused)
    return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the machine ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator and Apple's GPU raise a plain RuntimeError.
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
