"""The tensors of a LoRA file by the names of the model's layers, whatever its layout; diffusers converts the names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from h2gen.families import family_of

IN_A_LAYER = re.compile(r"\.(lora_[AB]|lokr_\w+)(\.|$)")
_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
_DOWN = (".lora_A.weight", ".lora_down.weight")
_PREFIXES, _ORIGINAL = r"base_model\.model|diffusion_model|transformer", "diffusion_model."
"""What may stand before the name of a layer, and what tells diffusers that the name is the original one."""
_LAST = "final_layer.adaLN_modulation.1.lora_A.weight"
"""The first factor of the last modulation, by its original name."""


def converted_names(pipe: Any, path: Path) -> tuple[dict[str, torch.Tensor], list[str], bool]:
    """The LoRA's tensors by diffusers' names, the names in the file of those that the conversion dropped, and whether
    diffusers reads the file by itself."""
    # diffusers only logs what it drops. Autograd knows better: what was used is an ancestor of the result.
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {
            name: tensor.requires_grad_() if tensor.is_floating_point() else tensor
            for name, tensor in load_file(path).items()
        }
        family = family_of(pipe.transformer)
        layers = family.lora_layers
        scaled = _with_alphas(leaves, kohyas=bool(layers))
        names = _by_layers(layers, family.lora_words, scaled) if layers else _readable(pipe, scaled)
        given = {name: scaled[old].clone() for old, name in names.items()}
        for name in given.keys() & {_LAST, *([_ORIGINAL + _LAST] if layers else [])}:
            # diffusers swaps the halves of both factors, but should swap only those of the second.
            given[name] = torch.cat([*given[name].chunk(2)][::-1])
        found = type(pipe).lora_state_dict(dict(given))
    converted = {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    used = _ancestors(converted.values())
    dropped = [
        name
        for name, tensor in leaves.items()
        if not name.endswith("alpha") and id(tensor) not in used and tensor.is_floating_point() and tensor.any()
    ]
    as_is = given.keys() == leaves.keys() and converted.keys() <= leaves.keys()
    return _peft_names(pipe, {name: tensor.detach() for name, tensor in converted.items()}), dropped, as_is


def _with_alphas(tensors: Mapping[str, torch.Tensor], *, kohyas: bool) -> dict[str, torch.Tensor]:
    """The tensors with each layer's alpha multiplied into its first factor. Kohya's names are left alone unless
    ``kohyas``, because diffusers' loaders then do it themselves; with other names some of them drop alpha."""
    scaled = dict(tensors)
    for name in [name for name in tensors if name.endswith(".alpha") and (kohyas or not name.startswith("lora_"))]:
        layer = name.removesuffix(".alpha")
        down = next((layer + end for end in _DOWN if layer + end in tensors), None)
        if down is not None:
            scaled[down] = tensors[down] * (scaled.pop(name).item() / tensors[down].shape[0])
    return scaled


def _readable(pipe: Any, names: Iterable[str]) -> dict[str, str]:
    """For each name in the file, such as ComfyUI's or PEFT's, a name that diffusers' loaders read."""
    if any(".processor." in name or name.endswith("query_norm.scale") for name in names):
        return {name: name for name in names}
    plain = {name: re.sub(r"^(base_model\.model|diffusion_model)\.", "", name) for name in names}
    if any(re.match(r"(double|single)_blocks\.", name) for name in plain.values()):
        found = {old: old if old.startswith("text") else f"diffusion_model.{name}" for old, name in plain.items()}
        if "text_encoder" in pipe._lora_loadable_modules:  # FLUX.1's loader, which Chroma has too
            return {
                old: name.replace(".lora_A.", ".lora_down.").replace(".lora_B.", ".lora_up.")
                for old, name in found.items()
            }
        return {old: _in_peft(name) for old, name in found.items()}
    ours = {old: name != old or name.startswith(_BLOCKS) for old, name in plain.items()}
    found = {old: f"transformer.{name}" if ours[old] else old for old, name in plain.items()}
    return {old: _in_peft(name) if "transformer_blocks." in name else name for old, name in found.items()}


def _by_layers(layers: Mapping[str, Sequence[str]], words: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """As ``_readable``, for a family that lists the original names of its ``layers`` and the ``words`` that other
    programs use instead. Kohya's names and all prefixes are read too."""
    kohyas = {
        f"{blocks}_{{}}_{layer.replace('.', '_')}": f"{blocks}.{{}}.{layer}"
        for blocks, each in layers.items()
        for layer in each
    }

    def in_words(name: str) -> str:
        if name.startswith(tuple(f"{blocks}." for blocks in layers)):
            for other, own in words.items():
                name = name.replace(other, own)
        return name

    def dotted(name: str) -> str:
        layer, _, rest = name.removeprefix("lora_unet_").partition(".")
        number = re.search(r"_(\d+)_", layer)
        found = number and kohyas.get(layer.replace(number[0], "_{}_", 1))
        return f"{found.format(number[1])}.{rest}" if found and number else name

    plain = {
        name: dotted(name) if name.startswith("lora_unet_") else in_words(re.sub(rf"^({_PREFIXES})\.", "", name))
        for name in names
    }
    inside = "|".join(rf"{blocks}\.\d+\.({'|'.join(map(re.escape, each))})\." for blocks, each in layers.items())
    original = any(re.match(inside, name) for name in plain.values())
    return {old: (_ORIGINAL if original else "transformer.") + _in_peft(name) for old, name in plain.items()}


def _in_peft(name: str) -> str:
    return name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")


def _ancestors(tensors: Any) -> set[int]:
    """The ids of these tensors and of those that they were computed from."""
    found = {id(tensor) for tensor in tensors}
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [each for each, _ in node.next_functions if each is not None]
    return found


def _peft_names(pipe: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by the loader's final names, which name layers of the model."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    text = {name: tensor for name, tensor in tensors.items() if name.startswith("text_encoder.")}
    rest = {name: tensor for name, tensor in tensors.items() if name not in text and not name.endswith("alpha")}
    # The conversion forgets the prefix of layers outside the blocks, and the loader then drops them.
    rest = {name if name.startswith("transformer.") else f"transformer.{name}": t for name, t in rest.items()}
    if rest and not any(IN_A_LAYER.search(name) for name in rest):
        rest = convert_unet_state_dict_to_peft(rest)
    if text:
        inner = {name.removeprefix("text_encoder."): tensor for name, tensor in text.items() if "alpha" not in name}
        inner = convert_state_dict_to_peft(convert_state_dict_to_diffusers(inner))
        flat = not hasattr(getattr(pipe, "text_encoder", None), "text_model")
        text = {f"text_encoder.{name.removeprefix('text_model.') if flat else name}": t for name, t in inner.items()}
    return {**rest, **text}
