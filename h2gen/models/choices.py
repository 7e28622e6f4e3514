"""The names of devices, offloading modes, dtypes, solvers, kinds of control pictures and loggers; and limits of memory.

Without torch, so that a wrong name is found at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from h2gen.errors import DeviceError, SettingError
from h2gen.wording import did_you_mean, shown

LIBRARIES = ("diffusers", "transformers", "huggingface_hub", "torchao", "bitsandbytes", "torch.utils._pytree")
"""The loggers of the libraries that load models."""

DEVICES = ("cuda", "mps", "xpu", "cpu")

WAYS = ("none", "text", "model", "group", "sequential")
"""The offloading modes, from the fastest to the one that needs the least memory."""
OFFLOADS = (*WAYS, "auto")

DTYPES = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "float32": "float32",
}
"""The name in torch of each dtype."""

SOLVERS = {
    "own": "the model's own",
    "unipc": "UniPC",
    "heun": "Heun",
    "dpm++": "DPM++ 2M",
    "lcm": "LCM",
}
"""The solvers, each with its display name."""
TRIED_SOLVERS = ("own", "unipc", "heun")
"""The solvers that comparisons and tuning try."""
OF_DIFFUSERS = {
    "FlowMatchEulerDiscreteScheduler": "own",
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpm++",
    "FlowMatchLCMScheduler": "lcm",
}
"""The solver that each scheduler of diffusers is."""


def stronger(offload: str, refused: Collection[str] = ()) -> str | None:
    """The next offloading mode that needs less memory, without those that a model refuses; None if there is none."""
    return next((way for way in WAYS[WAYS.index(offload) + 1 :] if way not in refused), None)


def evaluations(steps: int, solver: str) -> int:
    """How often a solver calls the model in this number of steps: Heun twice per step, except in the last."""
    return 2 * steps - 1 if solver == "heun" else steps


def steps_run(steps: int, strength: float) -> int:
    """How many of the steps run at a strength, above 0 and up to 1: the last ones, at least one.

    Source: ``get_timesteps`` of diffusers' image-to-image pipelines.
    """
    return steps - int(max(steps - min(steps * strength, steps), 0))


def split_device(name: str) -> tuple[str, int]:
    """The kind and the index of a device such as "cuda:1"; "auto" is a kind too. Whether it exists is not checked.

    Raises:
        DeviceError: there is no such kind of device.
    """
    match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", name)
    if name != "auto" and (match is None or match[1] not in DEVICES):
        known = ("auto", *DEVICES)
        raise DeviceError(f"There is no device {name!r}{did_you_mean(name, known)} Choose from {', '.join(known)}.")
    kind, _, index = name.partition(":")
    return kind, int(index or 0)


_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def memory_limit(text: str, called: str = "memory") -> int | None:
    """The bytes that ``--memory`` allows: ``10G`` and ``10 GB`` are 10^10, ``10GiB`` is 10 * 2^30; None if it is
    ``auto`` or ``none``.

    Raises:
        SettingError: it is something else.
    """
    given = text.strip().lower()
    if given in ("auto", "none"):
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([kmgt]i?)b?", given)
    size = 0 if found is None else round(float(found[1]) * _UNITS[found[2]])
    if not size:
        raise SettingError(f"{called} {shown(text)} is not supported; give auto, none or a size such as 10GB.")
    return size


MODES = {"canny": 0, "edges": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "lq": 6}
"""What a union calls each kind of control picture, as InstantX and Shakker Labs number them."""


def mode_of(net: Mapping[str, Any], kind: str) -> int | None:
    """The mode of a union for a kind of control picture; None if the ControlNet is no union.

    Raises:
        LookupError: it is a union, and has no such kind; the message lists those that it has.
    """
    modes = net.get("num_mode")
    if modes is None:
        return None
    if MODES.get(kind, modes) >= modes:
        raise LookupError(", ".join(name for name, mode in MODES.items() if mode < modes))
    return MODES[kind]
