"""Load a text encoder or an autoencoder from a file, with the configuration of a model that has the same part."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from h2gen.errors import ModelError
from h2gen.models import files
from h2gen.models.files import Stored, shown
from h2gen.models.part_files import VAE, PartFile
from h2gen.models.quantized import Scales, check_layout, read_configs
from h2gen.wording import printable

_NOT_OF_THE_MODEL = ("spiece_model", "tekken_model")
"""Tokenizers, which ComfyUI stores as tensors."""
_OF_ANOTHER_USE = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "decoder.", "lm_head.")
"""Parts of CLIP and T5 that encode no text."""
_MOVED = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
"""Layers of FLUX.2's autoencoder whose original names begin otherwise than FLUX.1's."""


def load_part(part: PartFile, cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A text encoder or an autoencoder with the weights of a file.

    Args:
        part: in the file.
        cls: of diffusers or transformers.
        folder: that has the part's ``config.json``.
        dtype: of the weights.

    Raises:
        ModelError: the file lacks weights, has some of other shapes, or stores them in a way that h2gen does not read.
    """
    gguf = part.path.suffix.lower() == ".gguf"
    weights = _read_gguf(part, cls, folder, dtype) if gguf else _read(part, dtype)
    if part.kind == VAE:
        return _autoencoder(part, cls, folder, weights).to(dtype).eval()
    return _encoder(part, cls, folder, weights, dtype).eval()


def _read(part: PartFile, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a part by their names without the prefix, those in 8 bits as ordinary ones."""
    from safetensors.torch import load_file

    header = files.read_header(part.path)
    tensors = {name.removeprefix(part.prefix): each for name, each in header.tensors.items() if _is_in(name, part)}
    check_layout(part.path, tensors)
    layers = read_configs(part.path, [part.prefix + name for name in tensors], header.metadata).items()
    configs = {layer.removeprefix(part.prefix): config for layer, config in layers if layer.startswith(part.prefix)}
    every = load_file(part.path)
    weights = {name: every[part.prefix + name] for name in tensors}
    counts = {name: each for name, each in tensors.items() if each.dtype == "I64"}  # such as position_ids
    kept: dict[str, Stored] = {name: each for name, each in tensors.items() if name not in counts}
    scales = Scales(part.path, kept, configs)
    scales.apply(weights, dtype)
    eight = (torch.float8_e4m3fn, torch.float8_e5m2)
    return {
        name: weights[name].to(dtype) if weights[name].dtype in eight else weights[name] for name in (*kept, *counts)
    }


def _is_in(name: str, part: PartFile) -> bool:
    return name.startswith(part.prefix) and name.removeprefix(part.prefix) not in _NOT_OF_THE_MODEL


def _read_gguf(part: PartFile, cls: Any, folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        with torch.device("meta"):
            model = cls(_config(cls, folder))
        with contextlib.redirect_stderr(io.StringIO()):  # it always shows a progress bar
            found = load_gguf_checkpoint(str(part.path), return_tensors=True, model_to_load=model, torch_dtype=dtype)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"{shown(part.path)} is {part.title} that transformers cannot read as GGUF "
            f"({printable(str(error))[:150]}); use a .safetensors file."
        ) from error
    return dict(found["tensors"])


def _config(cls: Any, folder: Path) -> Any:
    return cls.config_class.from_pretrained(folder, local_files_only=True)


def _encoder(part: PartFile, cls: Any, folder: Path, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    try:
        model, info = cls.from_pretrained(
            None, config=_config(cls, folder), state_dict=weights, dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        if "expected shape" in str(error) or "mismatched" in str(error):
            raise _other_size(part) from error
        raise
    if missing := sorted(info["missing_keys"]):
        raise _lacks(part, missing)
    names = [name for name in sorted(info["unexpected_keys"]) if not name.startswith(_OF_ANOTHER_USE)]
    files.report_unused(part.path, [name for name in names if not name.endswith(".position_ids")], cls.__name__)
    return model


def _autoencoder(part: PartFile, cls: Any, folder: Path, weights: dict[str, torch.Tensor]) -> Any:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = files.read_json(folder / "config.json")
    with torch.device("meta"):
        model = cls.from_config(config)
    wanted = model.state_dict()
    if any("mid.block_" in name for name in weights):  # original names
        for before, after in _MOVED.items():
            weights = {
                after + name.removeprefix(before) if name.startswith(before) else name: tensor
                for name, tensor in weights.items()
            }
        same = {name: tensor for name, tensor in weights.items() if name in wanted}
        try:
            weights = {**same, **convert_ldm_vae_checkpoint(weights, config)}
        except (LookupError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{shown(part.path)} cannot be converted to diffusers' names ({printable(str(error))[:150]}); use a "
                "file that has them."
            ) from error
    if missing := sorted(wanted.keys() - weights.keys()):
        raise _lacks(part, missing)
    if any(weights[name].shape != tensor.shape for name, tensor in wanted.items()):
        raise _other_size(part)
    files.report_unused(part.path, [name for name in weights if name not in wanted], cls.__name__)
    model.load_state_dict({name: weights[name] for name in wanted}, assign=True)
    return model


def _lacks(part: PartFile, missing: list[str]) -> ModelError:
    return ModelError(
        f"{shown(part.path)} lacks {len(missing)} of the weights of {part.title}, such as {printable(missing[0])!r}; "
        f"{files.AGAIN}, or give another file."
    )


def _other_size(part: PartFile) -> ModelError:
    return ModelError(f"{shown(part.path)} is {part.title}, but not of the model's size; give another file.")
