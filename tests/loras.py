"""Small LoRA files for small transformers, in the layouts that people share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK = 4
Delta = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""By the layer's name in diffusers: the factors ``A (rank, inputs)`` and ``B (outputs, rank)``."""

_ORIGINAL = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff.linear_out": "img_mlp.2",
}
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ATTENTION = tuple(f"transformer_blocks.{block}.{layer}" for block in (0, 2) for layer in (*_QKV, "attn.to_out.0"))
FEED_FORWARD = (
    "transformer_blocks.1.ff.net.0.proj",
    "transformer_blocks.1.ff.net.2",
    "single_transformer_blocks.3.proj_out",
)


def delta(transformer: Any, layers: Sequence[str], seed: int = 0, rank: int = RANK) -> Delta:
    """Random factors for these layers; q, k and v of a block share theirs at the input, as fused layers do."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in layers:
        layer = transformer.get_submodule(name)
        shared = found.get(name.replace("to_k", "to_q").replace("to_v", "to_q"))
        a = shared[0] if shared else torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
        found[name] = (a, torch.randn(layer.out_features, rank, generator=generator) / rank**0.5)
    return found


def merged(transformer: Any, found: Delta, scale: float = 1.0) -> Any:
    """The transformer itself, with the LoRA in its weights."""
    with torch.no_grad():
        for name, (a, b) in found.items():
            transformer.get_submodule(name).weight.add_(scale * (b @ a))
    return transformer


def original(found: Delta) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same LoRA by the original names, where q, k and v are one layer."""
    out: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, (a, b) in found.items():
        single = name.startswith("single_")
        _, block, layer = name.split(".", 2)
        if single:
            out[f"single_blocks.{block}.linear2"] = (a, b)
        elif layer == "attn.to_q":
            fused = [found[name.replace("to_q", each)][1] for each in ("to_q", "to_k", "to_v")]
            out[f"double_blocks.{block}.img_attn.qkv"] = (a, torch.cat(fused))
        elif layer not in _QKV:
            out[f"double_blocks.{block}.{_ORIGINAL[layer]}"] = (a, b)
    return out


def in_layout(layout: str, found: Delta) -> dict[str, torch.Tensor]:
    """A LoRA's tensors as a file of this layout names them."""
    tensors: dict[str, torch.Tensor] = {}
    before = {"diffusers": "transformer.", "prefixed": "diffusion_model.", "bare": ""}
    if layout in before:
        for name, (a, b) in found.items():
            start = before[layout] + name
            tensors |= {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}
    elif layout == "xlabs":
        for name, (a, b) in original(found).items():
            lists, block, layer = name.split(".", 2)
            kind = {"img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1", "linear2": "proj_lora"}[layer]
            start = f"{lists}.{block}.processor.{kind}"
            tensors |= {f"{start}.down.weight": a, f"{start}.up.weight": b}
    else:
        for name, (a, b) in original(found).items():
            if layout == "kohya":  # alpha is half the rank, so the factors are twice as large
                start = f"lora_unet_{name.replace('.', '_')}"
                tensors |= {f"{start}.lora_down.weight": 2 * a, f"{start}.lora_up.weight": b}
                tensors[f"{start}.alpha"] = torch.tensor(len(a) / 2)
            else:
                start = {"comfy": "diffusion_model.", "bfl": "", "peft": "base_model.model."}[layout] + name
                tensors |= {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}
    return tensors


def with_alphas(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same LoRA, with an alpha of half the rank and first factors that are twice as large."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".lora_A.weight"):
            found |= {name: 2 * tensor, name.replace("lora_A.weight", "alpha"): torch.tensor(len(tensor) / 2)}
    return found


def in_kohyas_words(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, with ``lora_down`` and ``lora_up``."""
    return {name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): each for name, each in tensors.items()}


def save(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """A .safetensors file of these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def save_smallest(path: Path, value: float = 0.0) -> Path:
    """A LoRA of one layer, which is the file's contents only; for tests that load no model."""
    name = "transformer.single_transformer_blocks.0.proj_out"
    return save(path, {f"{name}.lora_A.weight": torch.full((1, 2), value), f"{name}.lora_B.weight": torch.ones(2, 1)})
