"""The ways of quantizing a model's weights: bits, package, devices. Loads no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from h2gen.errors import DeviceError
from h2gen.wording import did_you_mean

NONE = "none"
PACKAGES = ("torchao", "bitsandbytes")
INSTALL = "pip install 'h2gen[quantize]'"
_EVERYWHERE = ("cuda", "xpu", "mps", "cpu")


@dataclass(frozen=True)
class Quantization:
    """A way of storing the weights of linear layers.

    Args:
        name: what ``--quantize`` calls it.
        bits: of a weight, with its share of the scales.
        package: that does it: ``torchao`` or ``bitsandbytes``.
        about: what it is, in a few words.
        devices: kinds of device that can compute with it.
        capability: the lowest compute capability of an NVIDIA GPU that can.
        dtypes: that the model may compute in; empty is any.
        inside, outside: features that go into and come out of a layer have to be multiples of these; a layer of another
            size stays as it is.
    """

    name: str
    bits: float
    package: str
    about: str
    devices: tuple[str, ...] = _EVERYWHERE
    capability: tuple[int, int] = (0, 0)
    dtypes: tuple[str, ...] = ()
    inside: int = 1
    outside: int = 1

    def takes(self, inside: int, outside: int) -> bool:
        """Whether it can store a linear layer with this number of input and output features."""
        return inside % self.inside == 0 and outside % self.outside == 0


# The thousands of weights of a row share a scale of 32 bits, as do 64 weights in nf4 and fp4; in int4, 128 weights
# share a scale and a zero point of 16 bits each.
_ROW, _FOUR_BITS = 8.01, {"bits": 4.5, "package": "bitsandbytes", "inside": 64, "outside": 32}

QUANTIZATIONS: Mapping[str, Quantization] = {
    each.name: each
    for each in (
        Quantization("int8", _ROW, "torchao", "8-bit integers, one scale per row"),
        Quantization(
            "int8-dynamic",
            _ROW,
            "torchao",
            "as int8, and multiplied in 8 bits: inputs are quantized too (W8A8)",
            devices=("cuda", "xpu", "cpu"),
            capability=(8, 0),
            inside=8,
            outside=8,
        ),
        Quantization("fp8", _ROW, "torchao", "8-bit floats (E4M3), one scale per row", devices=("cuda", "xpu", "cpu")),
        Quantization(
            "fp8-dynamic",
            _ROW,
            "torchao",
            "as fp8, and multiplied in 8 bits: inputs are quantized too (W8A8)",
            devices=("cuda", "xpu"),
            capability=(8, 9),
            dtypes=("bf16",),
            inside=16,
            outside=16,
        ),
        Quantization("nf4", about="4-bit NormalFloat, one scale per 64 weights", **_FOUR_BITS),  # type: ignore[arg-type]
        Quantization("fp4", about="4-bit floats, one scale per 64 weights", **_FOUR_BITS),  # type: ignore[arg-type]
        Quantization(
            "int4",
            4.25,
            "torchao",
            "4-bit integers, a scale and a zero point per 128 weights",
            devices=("cuda",),
            capability=(8, 0),
            dtypes=("bf16",),
            inside=128,
            outside=8,
        ),
    )
}
"""By name."""

CHOICES = (NONE, *QUANTIZATIONS)
SYNONYMS = {
    "off": NONE,
    "int8wo": "int8",
    "int8-weight-only": "int8",
    "int8dq": "int8-dynamic",
    "w8a8": "int8-dynamic",
    "float8": "fp8",
    "fp8wo": "fp8",
    "float8wo": "fp8",
    "fp8dq": "fp8-dynamic",
    "float8dq": "fp8-dynamic",
    "int4wo": "int4",
}
"""Other names in use, such as those of torchao."""


def find_quantization(name: str) -> Quantization | None:
    """The quantization of a name; None for "none".

    Raises:
        DeviceError: there is none of this name.
    """
    name = SYNONYMS.get(name.lower(), name.lower())
    if name not in CHOICES:
        raise DeviceError(
            f"There is no quantization {name!r}{did_you_mean(name, CHOICES)} Choose from {', '.join(CHOICES)}."
        )
    return QUANTIZATIONS.get(name)


def check_installed(package: str, what: str) -> None:
    """Check that a package is installed; it is not imported.

    Args:
        package: ``torchao`` or ``bitsandbytes``.
        what: needs it, for the message.

    Raises:
        DeviceError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise DeviceError(f"{what} needs the package {package}; run: {INSTALL}.")


def stored_quantization(path: Path) -> str | None:
    """What a part in a folder is quantized with, by its configuration; None if it is not, or if it is a file."""
    from h2gen.models.files import read_json  # loads the families, which the table of settings does not need

    config = path / "config.json"
    return quantization_in(read_json(config)) if config.is_file() else None


def quantization_in(config: Mapping[str, Any]) -> str | None:
    """What a part is quantized with, by the contents of its ``config.json``; None if it is not."""
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return None
    four = found.get("bnb_4bit_quant_type") if found.get("load_in_4bit") else None
    return " ".join(map(str, filter(None, (found.get("quant_method", "bitsandbytes"), four))))


def refused_offloads(package: str, *, blocks: bool) -> tuple[str, ...]:
    """The ways of offloading that would leave scales behind: those of bitsandbytes are not parameters, and only h2gen's
    own offloading, of a transformer's blocks, knows them.

    Args:
        package: that stores the weights.
        blocks: whether they are in a transformer's blocks, in 4 bits.
    """
    if package != "bitsandbytes":
        return ()
    return ("sequential",) if blocks else ("group", "sequential")


def usable_on(device: str, dtype: str, capability: tuple[int, int] | None = None) -> list[str]:
    """The names of the quantizations that a device can compute with.

    Args:
        device: its kind, such as ``cuda``.
        dtype: that the model computes in, such as ``bf16``.
        capability: the compute capability of an NVIDIA GPU.
    """
    return [
        each.name
        for each in QUANTIZATIONS.values()
        if device in each.devices
        and (not each.dtypes or dtype in each.dtypes)
        and (capability is None or capability >= each.capability)
    ]
