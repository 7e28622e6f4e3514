"""Choose the device to compute on, and the dtype."""

from __future__ import annotations

import torch

from h2gen.errors import DeviceError
from h2gen.models.choices import DTYPES, split_device
from h2gen.wording import did_you_mean


def devices() -> dict[str, int]:
    """The kinds of device that torch can use on this machine, best first, each with its count."""
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "cpu": 1,
    }
    return {kind: count for kind, count in counts.items() if count}


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name such as "cuda", "cuda:1" or "cpu"; "auto" is the first available of cuda, mps, xpu and cpu.

    Raises:
        DeviceError: the name is unknown, or this machine has no such device.
    """
    kind, index = split_device(name)
    present = devices()
    if kind == "auto":
        return torch.device(next(iter(present)))
    if index >= present.get(kind, 0):
        raise DeviceError(_absent(name, kind, present))
    return torch.device(name)


def _absent(name: str, kind: str, present: dict[str, int]) -> str:
    """Why a device cannot be used, and what to do about it."""
    if kind == "cuda" and kind not in present and torch.version.cuda is None and torch.version.hip is None:
        return (
            f"No CUDA GPU: this PyTorch ({torch.__version__}) is CPU-only; install a CUDA build from pytorch.org, or "
            f"leave out --device {name}."
        )
    here = ", ".join(kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in present.items())
    return f"There is no device {name!r} here: PyTorch {torch.__version__} finds {here}; choose from these."


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name such as "bf16"; "auto" is bf16 on a GPU that supports it, fp16 on others, fp32 on the CPU.

    Raises:
        DeviceError: the name is unknown, or the device does not support the dtype.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if device.type != "mps" and _has_bf16(device) else torch.float16
    if name not in DTYPES:
        known = ("auto", *DTYPES)
        raise DeviceError(
            f"There is no dtype {name!r}{did_you_mean(name, known)} Choose from auto, bf16, fp16 and fp32."
        )
    dtype: torch.dtype = getattr(torch, DTYPES[name])
    if dtype is torch.bfloat16 and not _has_bf16(device):
        raise DeviceError(f"The device {str(device)!r} does not support bf16; use fp16 or fp32.")
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
