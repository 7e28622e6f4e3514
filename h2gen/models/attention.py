"""``--attention``: another attention backend of diffusers inside a context, and whether the device has it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from h2gen.errors import DeviceError, H2GenError, RunError
from h2gen.models.attention_names import ANYWHERE, DEFAULT, check_package
from h2gen.models.devices import choose_device, choose_dtype
from h2gen.models.memory import is_out_of_memory
from h2gen.models.translate_errors import brief


def check_attention(name: str, device: str, dtype: str) -> None:
    """Check an attention backend before anything is loaded.

    Args:
        name: as ``Settings`` has it.
        device, dtype: as ``LoadOptions`` has them.

    Raises:
        DeviceError: its package is not installed, or it is not for the device or the precision.
    """
    check_package(name)
    if name == DEFAULT or name in ANYWHERE:
        return
    where = choose_device(device)
    if where.type != "cuda":
        raise DeviceError(f"--attention {name} needs a CUDA or ROCm GPU, and the device is {where.type}; leave it out.")
    if not name.startswith("_native") and choose_dtype(dtype, where) == torch.float32:
        raise DeviceError(f"--attention {name} does not compute in fp32; give --dtype bf16, or leave it out.")


@contextmanager
def attending(transformer: Any, name: str, device: str = "auto") -> Iterator[None]:
    """Let a transformer's attention use a backend inside the context.

    diffusers also makes it the backend of all models that have none of their own; that is undone at once.

    Args:
        transformer: may be in main memory until it runs.
        name: as ``Settings`` has it.
        device: where it runs, as ``LoadOptions`` has it.

    Raises:
        DeviceError: it cannot be used here.
        RunError: it failed, for example because it takes no mask.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    from h2gen.models.load import quiet

    check_attention(name, device, str(transformer.dtype).removeprefix("torch."))
    processors: list[Any] = [getattr(module, "processor", None) for module in transformer.modules()]
    before = [(each, each._attention_backend) for each in processors if hasattr(each, "_attention_backend")]
    active = _AttentionBackendRegistry._active_backend
    try:
        with quiet():
            transformer.set_attention_backend(name)
        _AttentionBackendRegistry.set_active_backend(active)
        yield
    except Exception as error:
        if isinstance(error, H2GenError) or is_out_of_memory(error) or not _in_attention(error):
            raise
        raise RunError(f"--attention {name} failed ({brief(error)}); leave it out.") from error
    finally:
        _AttentionBackendRegistry.set_active_backend(active)
        for processor, backend in before:
            processor._attention_backend = backend


def _in_attention(error: BaseException) -> bool:
    """Whether an error comes from choosing or running an attention backend."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "set_attention_backend" or "attention_dispatch" in frame.filename for frame in frames)
