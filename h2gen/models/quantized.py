"""Weights stored in 8 bits with scales: which layouts are known, and how they become weights again.

Sources: ComfyUI's QUANTIZATION.md for ``weight_scale`` and ``comfy_quant``; its older files name the same things
``scale_weight`` and ``scaled_fp8``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch

from h2gen.errors import ModelError
from h2gen.models.files import Stored, read_header, shown
from h2gen.wording import printable

OTHER_FILE = "use a 16-bit, FP8 or GGUF file of this model instead"

_LAYOUTS = {
    ".quant_state.": "bitsandbytes (4-bit: NF4 or FP4)",
    ".quant_map": "bitsandbytes (4-bit: NF4 or FP4)",
    ".absmax": "bitsandbytes (4-bit: NF4 or FP4)",
    ".SCB": "bitsandbytes (8-bit)",
    ".wscales": "SVDQuant (nunchaku)",
    ".smooth_factor": "SVDQuant (nunchaku)",
    ".qweight": "GPTQ, AWQ or SVDQuant",
    ".weight_scale_2": "NVFP4",
    ".weight_scale_inv": "FP8 in blocks",
    ".weight_s_rel": "4-bit groups (W4A8)",
    ".pre_quant_scale": "AWQ",
    ".weight._data": "Quanto",
    ".weight._scale": "Quanto",
}
"""By a part of a tensor's name, what a file that h2gen cannot read is quantized with."""

_SCALES = (".scale_weight", ".weight_scale")
_OF_ACTIVATIONS = (".scale_input", ".input_scale")
"""Only needed to multiply in 8 bits; h2gen multiplies in the dtype of the model."""
_CONFIG = ".comfy_quant"
_MARK = "scaled_fp8"
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_SCALED = ("F8_E4M3", "F8_E5M2", "I8")
_FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8_tensorwise": torch.int8}
_HARMLESS = {"format", "full_precision_matrix_mult"}


_FOUR_BITS = _LAYOUTS[".absmax"]


def check_layout(file: Path, names: Collection[str], *, four_bits: bool = False) -> None:
    """Check that a file is not quantized in a way that h2gen does not read.

    ``four_bits``: whether ``FourBits`` reads it.

    Raises:
        ModelError: it is; the message names the way.
    """
    for mark, layout in _LAYOUTS.items():
        if any(mark in name for name in names) and not (four_bits and layout == _FOUR_BITS):
            raise ModelError(f"{shown(file)} is quantized with {layout}, which h2gen cannot read; {OTHER_FILE}.")


def check_plain(file: Path) -> None:
    """Check that the weights of a part, whose configuration mentions no quantization, are ordinary ones.

    Raises:
        ModelError: they have scales, or are not floating-point numbers.
    """
    tensors = read_header(file).tensors
    check_layout(file, tensors)
    for name, stored in tensors.items():
        if name.endswith((*_SCALES, ".weight")) and (name.endswith(_SCALES) or stored.dtype not in _FLOATS):
            raise _unknown(file, name, f"{stored.dtype}, and its config.json has no quantization_config")


class Scales:
    """The scales of a file's weights, taken out of its tensors.

    Args:
        file: for messages.
        tensors: of a transformer, by name. Everything about scales is removed from it.
        configs: by layer, its ``comfy_quant`` or its entry in the file's ``_quantization_metadata``.

    Raises:
        ModelError: weights are stored in a way that h2gen does not know.
    """

    def __init__(
        self, file: Path, tensors: MutableMapping[str, Stored], configs: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._names: dict[str, str] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for name in [name for name in tensors if name.endswith(_SCALES)]:
            scale = tensors.pop(name)
            weight = f"{name.rpartition('.')[0]}.weight"
            stored = tensors.get(weight)
            rows = stored.shape[0] if stored is not None and stored.shape else 0
            known = scale.dtype in _FLOATS[:4] and scale.shape in ((), (1,), (1, 1), (rows,), (rows, 1))
            if stored is None or not known:
                raise _unknown(file, name, f"a scale of shape {list(scale.shape)} in {scale.dtype}")
            self._names[weight] = name
        for name in [name for name in tensors if name.endswith((*_OF_ACTIVATIONS, _CONFIG)) or name == _MARK]:
            del tensors[name]
        for layer, config in configs.items():
            weight = f"{layer}.weight"
            if str(config.get("format")) not in _FORMATS or config.keys() - _HARMLESS or weight not in self._names:
                raise _unknown(file, weight, " ".join(f"{key}={value}" for key, value in config.items()))
            self._dtypes[weight] = _FORMATS[config["format"]]
        for name, stored in tensors.items():
            allowed = (*_SCALED, *(["U8"] if name in self._dtypes else [])) if name in self._names else _FLOATS
            if stored.dtype not in allowed:
                has = "a scale" if name in self._names else "no scale"
                raise _unknown(file, name, f"{stored.dtype} with {has}")

    def apply(self, weights: MutableMapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        """Turn scaled weights into ordinary ones, one by one, and remove their scales.

        Args:
            weights: of the file by name, with its scales.
            dtype: of the ordinary weights.
        """
        for weight, name in self._names.items():
            stored, scale = weights[weight], weights.pop(name).float()
            if stored.dtype == torch.uint8:  # a mere container
                stored = stored.view(self._dtypes[weight])
            rows = scale.reshape(-1, *[1] * (stored.ndim - 1))  # a single one is for all rows
            weights[weight] = (stored.float() * rows).to(dtype)


def read_configs(file: Path, names: Collection[str], metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """How ComfyUI says each layer is stored, by the layer's name in the file.

    Raises:
        ModelError: it does not say so in JSON.
    """
    from safetensors import safe_open

    try:
        found = dict(json.loads(metadata.get("_quantization_metadata", "{}")).get("layers", {}))
        for name in [name for name in names if name.endswith(_CONFIG)]:
            with safe_open(file, framework="pt") as opened:
                found[name.removesuffix(_CONFIG)] = json.loads(bytes(opened.get_tensor(name).flatten().tolist()))
        return {layer: dict(config) for layer, config in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{shown(file)} says how it is quantized, but not in valid JSON; {OTHER_FILE}.") from error


def _unknown(file: Path, name: str, how: str) -> ModelError:
    return ModelError(
        f"{shown(file)} stores {printable(name)!r} in a way that h2gen does not support ({printable(how)[:100]}); "
        f"{OTHER_FILE}."
    )
