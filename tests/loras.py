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


def control_lora(
    transformer: Any, seed: int = 0, rank: int = RANK, *, original: bool = True
) -> dict[str, torch.Tensor]:
    """A Control LoRA for a transformer of FLUX.1: of all its layers, with biases, norms, and twice the input channels.

    Args:
        transformer: of a text-to-image model.
        seed, rank: of its factors.
        original: by the names of Black Forest Labs' FLUX.1 Canny and Depth LoRAs; otherwise by diffusers'.
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(name: str, inside: int, outside: int) -> dict[str, torch.Tensor]:
        return {
            f"{name}.lora_A.weight": torch.randn(rank, inside, generator=generator) / inside**0.5,
            f"{name}.lora_B.weight": torch.randn(outside, rank, generator=generator) / rank**0.5,
            f"{name}.lora_B.bias": torch.randn(outside, generator=generator) / 10,
        }

    def scale(name: str) -> dict[str, torch.Tensor]:
        return {name: 1 + torch.randn(transformer.config.attention_head_dim, generator=generator) / 10}

    channels, width = 2 * transformer.config.in_channels, transformer.inner_dim
    if not original:
        named = dict(transformer.named_modules())
        layers = {"x_embedder": channels, **{name: named[name].in_features for name in (*ATTENTION, *FEED_FORWARD)}}
        found = [factors(f"transformer.{name}", inside, named[name].out_features) for name, inside in layers.items()]
        found.append(scale("transformer.transformer_blocks.0.attn.norm_added_q.weight"))
        return {name: tensor for each in found for name, tensor in each.items()}
    pooled, text = transformer.config.pooled_projection_dim, transformer.config.joint_attention_dim
    sizes = {"img_in": (channels, width), "txt_in": (text, width), "final_layer.linear": (width, channels // 2)}
    sizes |= {"final_layer.adaLN_modulation.1": (width, 2 * width)}
    for name, inside in (("time_in", 256), ("vector_in", pooled), ("guidance_in", 256)):
        sizes |= {f"{name}.in_layer": (inside, width), f"{name}.out_layer": (width, width)}
    norms = []
    for block in range(transformer.config.num_layers):
        for stream in ("img", "txt"):
            start = f"double_blocks.{block}.{stream}"
            sizes |= {f"{start}_mod.lin": (width, 6 * width), f"{start}_attn.qkv": (width, 3 * width)}
            sizes |= {f"{start}_attn.proj": (width, width)}
            sizes |= {f"{start}_mlp.0": (width, 4 * width), f"{start}_mlp.2": (4 * width, width)}
            norms += [f"{start}_attn.norm.{which}_norm.scale" for which in ("query", "key")]
    for block in range(transformer.config.num_single_layers):
        start = f"single_blocks.{block}"
        sizes |= {f"{start}.modulation.lin": (width, 3 * width), f"{start}.linear1": (width, 7 * width)}
        sizes |= {f"{start}.linear2": (5 * width, width)}
        norms += [f"{start}.norm.{which}_norm.scale" for which in ("query", "key")]
    found = [*(factors(name, *size) for name, size in sizes.items()), *map(scale, norms)]
    return {name: tensor for each in found for name, tensor in each.items()}
