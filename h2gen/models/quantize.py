"""Quantize the linear layers of a loaded model, one after another, with torchao or bitsandbytes.

The quantization of diffusers while it loads refuses bitsandbytes on a CPU, takes each single file for one that is
quantized already, and cannot leave out a transformer's last layer without those in its blocks that have the same name.
Its flags are set on the model, so that PEFT and offloading treat it as one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from h2gen.errors import DeviceError, ModelError
from h2gen.models.files import shown
from h2gen.models.load_options import LoadOptions
from h2gen.models.quantization import (
    NONE,
    PACKAGES,
    QUANTIZATIONS,
    Quantization,
    check_installed,
    find_quantization,
    refused_offloads,
    stored_quantization,
    usable_on,
)
from h2gen.wording import printable

_IN_BLOCK = re.compile(r"\w+\.\d+\.")
"""The beginning of the name of a layer in one of a transformer's blocks."""
_OUTSIDE = ("lm_head", "vision_tower", "visual", "multi_modal_projector")
"""Parts of chat models that encode no text."""


class Quantizer:
    """What is quantized while a model is loaded.

    Args:
        options: of loading it; none but the quantization has to be resolved.
        device: to compute on.
        dtype: to compute in.

    Raises:
        DeviceError: a package is missing, or the device, the dtype or the offloading does not go with a quantization.
    """

    def __init__(self, options: LoadOptions, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self._dtype, self._offload = device, dtype, options.offload
        self._with_scales: dict[str, tuple[str, ...]] = {}
        """What bitsandbytes stores, and the ways of offloading that do not go with it."""
        self._of = {
            "quantize": find_quantization(options.quantize),
            "quantize_text": find_quantization(options.quantize_text),
        }
        for option, how in self._of.items():
            if how is not None:
                named = f"--{option.replace('_', '-')} {how.name}"
                check_usable(how, named, device, dtype)
                self._check_offload(how.package == "bitsandbytes", named, blocks=option == "quantize")

    @property
    def names(self) -> dict[str, str]:
        """The quantizations by the names of their options, which are those of ``LoadOptions``."""
        return {option: NONE if how is None else how.name for option, how in self._of.items()}

    @property
    def refused(self) -> set[str]:
        """The ways of offloading that do not go with what has been quantized."""
        return {offload for each in self._with_scales.values() for offload in each}

    def check_stored(self, name: str, path: Path) -> None:
        """Check a part that is stored quantized.

        Args:
            name: of the part in its pipeline.
            path: its folder or file.

        Raises:
            ModelError: it is to be quantized as well.
            DeviceError: it cannot be offloaded in that way, or the package that it needs is missing.
        """
        stored = "GGUF" if path.suffix.lower() == ".gguf" and name == "transformer" else stored_quantization(path)
        if stored is None:
            return
        if stored.split()[0] in PACKAGES:
            check_installed(stored.split()[0], shown(path))
        option = _option(name)
        if option is not None and self._of[option] is not None:
            raise ModelError(
                f"{shown(path)} is quantized already ({printable(stored)}); leave out --{option.replace('_', '-')}."
            )
        four_bits = stored.startswith("bitsandbytes ")  # 8 bits have their scales elsewhere
        named = f"{shown(path)} ({printable(stored)})"
        self._check_offload(stored.startswith("bitsandbytes"), named, blocks=four_bits and name == "transformer")

    def keep(self, kind: str | None, file: Path) -> None:
        """Store a transformer in 4 bits again that a file has in 4 bits, unless it is to be quantized otherwise.

        Args:
            kind: ``nf4`` or ``fp4``; None for other files.
            file: for messages.

        Raises:
            DeviceError: that cannot be used here.
        """
        if kind is None:
            return
        check_installed("bitsandbytes", shown(file))
        if self._of["quantize"] is None:
            how = QUANTIZATIONS[kind]
            check_usable(how, named := f"{shown(file)} in {kind}", self.device, self._dtype)
            self._check_offload(True, named, blocks=True)
            self._of["quantize"] = how

    def _check_offload(self, bitsandbytes: bool, named: str, *, blocks: bool) -> None:
        """As ``check_offload``, for a part that is about to be loaded, and for what is chosen later."""
        if bitsandbytes:
            self._with_scales[named] = refused_offloads("bitsandbytes", blocks=blocks)
        self.check_offload(self._offload)

    def check_offload(self, offload: str) -> None:
        """Check that no offloading leaves the scales of bitsandbytes behind: they are not parameters, and only h2gen's
        own, of a transformer's blocks, knows them.

        Raises:
            DeviceError: it would.
        """
        for named, refused in self._with_scales.items():
            if offload in refused:
                raise DeviceError(
                    f"{named} does not work with --offload {offload}, which would leave its scales behind; use "
                    "--offload model."
                )

    def quantize(self, name: str, part: torch.nn.Module) -> None:
        """Quantize a loaded part of a pipeline, if it is to be.

        Raises:
            ModelError: no layer has a size that the quantization takes.
        """
        option = _option(name)
        how = None if option is None or type(part).__name__.startswith("CLIP") else self._of[option]
        if how is not None:
            quantize(part, how, self.device, blocks=option == "quantize")


def _option(name: str) -> str | None:
    """The option that quantizes a part of a pipeline."""
    return "quantize" if name == "transformer" else "quantize_text" if name.startswith("text_enc") else None


def check_usable(how: Quantization, named: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check that a quantization can be used.

    Args:
        how: the quantization.
        named: what the user calls it, for messages.
        device: to compute on.
        dtype: to compute in.

    Raises:
        DeviceError: its package is missing, or it does not go with the device or the dtype.
    """
    check_installed(how.package, named)
    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" and not torch.version.hip else None
    here = usable_on(device.type, short, capability)
    if how.name not in here:
        which = f"choose from {', '.join(here)}"
        if device.type not in how.devices:
            raise DeviceError(f"{named} does not run on the device {str(device)!r}; {which}.")
        if how.dtypes and short not in how.dtypes:
            raise DeviceError(f"{named} needs --dtype {' or '.join(how.dtypes)}, not {short}; or {which}.")
        need, has = (".".join(map(str, each)) for each in (how.capability, capability or (0, 0)))
        raise DeviceError(f"{named} needs an NVIDIA GPU of compute capability {need}, and this one has {has}; {which}.")


def quantize(part: Any, how: Quantization, device: torch.device, *, blocks: bool) -> None:
    """Replace the weights of a model's linear layers by quantized ones.

    Each layer returns to main memory, so the device needs room for one of them only.

    Args:
        part: a transformer of diffusers or a text encoder of transformers, in main memory.
        how: the quantization.
        device: to quantize on.
        blocks: whether only layers in its blocks are quantized, as in a transformer, whose other layers are few and
            sensitive.

    Raises:
        ModelError: no layer has a size that it takes.
    """
    names = [name for name, layer in _linear(part, blocks=blocks) if how.takes(layer.in_features, layer.out_features)]
    if not names:
        raise ModelError(
            f"{type(part).__name__} has no layer whose size {how.name} supports: its features must be multiples of "
            f"{how.inside} and {how.outside}; use int8."
        )
    dtype = part.dtype
    for name in names:
        layer = part.get_submodule(name)
        if how.package == "torchao":
            from torchao.quantization import quantize_

            quantize_(layer.to(device), _torchao(how.name))
        else:
            layer = _four_bits(layer, how.name, dtype, device)
            part.set_submodule(name, layer)
        layer.to("cpu")
    _flag(part, how, dtype)


def _linear(part: Any, *, blocks: bool) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers of a model that may be quantized, by name."""
    kept = tuple(getattr(part, "_keep_in_fp32_modules", None) or ())  # such as T5's wo, which transformers leaves too
    for name, layer in part.named_modules():
        inside = _IN_BLOCK.match(name) if blocks else not set(name.split(".")) & {*_OUTSIDE}
        if type(layer) is torch.nn.Linear and inside and name.rpartition(".")[2] not in kept:
            yield name, layer


def _torchao(name: str) -> Any:
    """The configuration of torchao for a quantization. None changes the settings of torch's compiler."""
    from torchao import quantization as ao

    if name == "int8":
        return ao.Int8WeightOnlyConfig(set_inductor_config=False)
    if name == "int8-dynamic":
        return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    if name == "fp8":
        return ao.Float8WeightOnlyConfig(set_inductor_config=False)
    if name == "fp8-dynamic":
        return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), set_inductor_config=False)
    return ao.Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d", set_inductor_config=False)


def _four_bits(layer: torch.nn.Linear, kind: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A layer of bitsandbytes with the weights of another, which are quantized as they reach the device."""
    from bitsandbytes import nn

    new = nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        compress_statistics=False,
        quant_type=kind,
        device="meta",
    )
    weight = layer.weight.detach()
    new.weight = nn.Params4bit(weight, requires_grad=False, compress_statistics=False, quant_type=kind, module=new)
    new.weight = new.weight.to(device)
    new.bias = layer.bias
    return new.eval().requires_grad_(False)


def _flag(part: Any, how: Quantization, dtype: torch.dtype) -> None:
    """Say on a model how it is quantized, where diffusers, transformers and PEFT look for it."""
    import diffusers
    from diffusers.quantizers import DiffusersAutoQuantizer

    if how.package == "torchao":
        config = diffusers.TorchAoConfig(_torchao(how.name))
    else:
        config = diffusers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=how.name, bnb_4bit_compute_dtype=dtype
        )
        part.is_loaded_in_4bit = True
    part.is_quantized, part.quantization_method = True, config.quant_method
    part.hf_quantizer = DiffusersAutoQuantizer.from_config(config, pre_quantized=False)


@contextmanager
def loading_quantized(folder: Path, stored: str | None, device: torch.device) -> Iterator[dict[str, Any]]:
    """Around loading a part from a folder: yields what ``from_pretrained`` needs besides, if it is stored quantized.

    Args:
        folder: for messages.
        stored: what ``stored_quantization`` says of it.
        device: where its weights are prepared.

    Raises:
        DeviceError: the package that it needs is missing.
    """
    package = (stored or "none").split()[0]
    if package not in PACKAGES:
        yield {}
        return
    check_installed(package, shown(folder))
    with ExitStack() as stack:
        if package == "bitsandbytes" and device.type == "cpu":
            # diffusers refuses it without a GPU; bitsandbytes itself and transformers do not.
            from diffusers.quantizers.bitsandbytes import bnb_quantizer

            for kind in (bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer):
                stack.callback(setattr, kind, "validate_environment", kind.validate_environment)
                kind.validate_environment = lambda *_args, **_options: None
        yield {"device_map": {"": str(device)}} if package == "bitsandbytes" else {}
