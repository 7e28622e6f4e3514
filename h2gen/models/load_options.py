"""How a model is loaded: where, in which precision, and what stays in main memory. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from h2gen.errors import SettingError


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model, apart from which one.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``xpu``.
        dtype: of all parts: ``auto`` (bf16 on a GPU that has it, fp32 on the CPU), ``bf16``, ``fp16`` or ``fp32``.
        offload: ``none``, ``text``, ``model``, ``group``, ``sequential`` or ``auto``; see ``apply_offload``.
        memory: of a GPU that ``offload="auto"`` has to fit into: ``auto`` is what is free, ``10GB`` at most that,
            ``none`` loads everything onto it.
        quantize: the transformer's weights: ``none`` or a name of ``QUANTIZATIONS``.
        quantize_text: likewise those of the text encoders, except CLIP's, which are few.
        compile: compile the transformer's blocks; without effect with ``sequential`` offloading.
        devices: that make each picture together.
    """

    device: str = "auto"
    dtype: str = "auto"
    offload: str = "none"
    memory: str = "auto"
    quantize: str = "none"
    quantize_text: str = "none"
    compile: bool = False
    devices: int = 1

    @property
    def changing(self) -> Mapping[str, str]:
        """The options that change the pixels, besides the dtype, and are not the default: metadata and job ids have
        them."""
        return self._not_default(CHANGING)

    @property
    def recorded(self) -> Mapping[str, Any]:
        """Further options that are not the default, which change at most the rounding: metadata and traces have them,
        job ids do not."""
        return self._not_default(("devices", "compile"))

    @property
    def loading(self) -> dict[str, str]:
        """The options that a profile's figures depend on, apart from device and dtype, and that are not the default:
        a profile has them. The value of ``compile`` is "yes"."""
        given = self._not_default(LOADING)
        return {name: "yes" if value is True else str(value) for name, value in given.items() if value != "auto"}

    def _not_default(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(DEFAULT, name)}


DEFAULT = LoadOptions()
LOAD_OPTIONS = tuple(each.name for each in fields(LoadOptions))
"""Their names, which are those of their rows in the table of settings."""
CHANGING = ("quantize", "quantize_text")
"""Those that change the pixels, besides the dtype."""
LOADING = (*CHANGING, "offload", "compile")
"""Those that a profile's figures depend on: the pixels, or how long a step takes."""


def check_together(options: LoadOptions) -> None:
    """Check that what a user gives goes together.

    Raises:
        SettingError: it does not.
    """
    if options.compile and options.offload == "sequential":
        raise SettingError(
            "--compile has no effect with --offload sequential, which fetches each layer; use --offload group, or "
            "leave out --compile."
        )


def unheeded_limit(options: LoadOptions, device: str) -> str | None:
    """What to say if nothing keeps to the size that ``--memory`` allows; None if something does, or there is none.

    Args:
        options: how a model is loaded.
        device: the kind of device, such as ``cuda``, whose allocator keeps to it whatever is offloaded.
    """
    if options.memory in ("auto", "none") or device == "cuda":
        return None
    given = f"--memory {options.memory.strip()} has no effect"
    if device == "cpu":
        return f"{given} on the CPU; it limits the memory of a GPU."
    if options.offload != "auto":
        return f"{given} on {device} with --offload {options.offload}; use --offload auto."
    return None
