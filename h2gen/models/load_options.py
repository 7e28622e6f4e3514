"""How a model is loaded: where, in which precision, and what stays in main memory. Without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model, apart from which one.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``xpu``.
        dtype: of all parts: ``auto`` (bf16 on a GPU that has it, fp32 on the CPU), ``bf16``, ``fp16`` or ``fp32``.
        offload: ``none``, ``text``, ``model``, ``group``, ``sequential`` or ``auto``; see ``apply_offload``.
        memory: what ``offload="auto"`` goes by: ``auto`` is the free memory, ``10GB`` at most that, ``none`` loads
            everything onto the device.
    """

    device: str = "auto"
    dtype: str = "auto"
    offload: str = "none"
    memory: str = "auto"


DEFAULT = LoadOptions()
LOAD_OPTIONS = tuple(each.name for each in fields(LoadOptions))
"""Their names, which are those of their rows in the table of settings."""
