"""Small random checkpoints on disk, in every format that h2gen reads, and ways to break them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

FLUX2_NAMES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
FLUX2_DOUBLE = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
FLUX2_SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}

FLUX1_NAMES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
FLUX1_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX1_SINGLE = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),  # only FLUX.1's single blocks
}


FLUX3_NAMES = {
    "timestep_embedder.linear_1": "time_in.in_layer",
    "timestep_embedder.linear_2": "time_in.out_layer",
    "target_timestep_embedder.linear_1": "ref_time_in.in_layer",
    "target_timestep_embedder.linear_2": "ref_time_in.out_layer",
    "proj_out": "final_layer.image.linear",
}
FLUX3_PARTS = {
    "x_embedders.": "emb_in.",
    "context_embedder": "txt_in",
    "single_transformer_blocks.": "single_blocks.",
    "attn.to_q": "q_proj",
    "attn.to_k": "k_proj",
    "attn.to_v": "v_proj",
    "attn.to_out.0": "attn_out",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "ff.linear_in": "mlp_in",
    "ff.linear_out": "mlp_out",
}


def flux3_names(transformer: Any) -> dict[str, torch.Tensor]:
    """As ``original_names``, of FLUX.3, whose layers are not fused."""
    out = {}
    for name, tensor in transformer.state_dict().items():
        stem, ending = name.rsplit(".", 1)
        if stem == "norm_out.linear":
            scale, shift = tensor.chunk(2)
            out["final_layer.image.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
            continue
        new = FLUX3_NAMES.get(stem, stem)
        if new.startswith("mode_blocks."):
            new = f"content_{new}"
        if "_modulations." in new:
            new = new.replace(".linear", ".lin")
        for ours, theirs in FLUX3_PARTS.items():
            new = new.replace(ours, theirs)
        out[f"{new}.{'scale' if '_norm' in new.rsplit('.', 1)[-1] else ending}"] = tensor
    return out


HUNYUAN_VIDEO_NAMES = {
    "x_embedder": "img_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm1.linear": "img_mod.linear",
    "norm1_context.linear": "txt_mod.linear",
    "attn.norm_q": "img_attn_q_norm",
    "attn.norm_k": "img_attn_k_norm",
    "attn.norm_added_q": "txt_attn_q_norm",
    "attn.norm_added_k": "txt_attn_k_norm",
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff_context": "txt_mlp",
    "ff": "img_mlp",
    "norm.linear": "modulation.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
HUNYUAN_VIDEO_TEXT = {
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder": "c_embedder",
    "token_refiner.refiner_blocks": "individual_token_refiner.blocks",
    "attn.to_out.0": "self_attn_proj",
    "norm_out.linear": "adaLN_modulation.1",
    "ff": "mlp",
    "proj_in": "input_embedder",
}
HUNYUAN_VIDEO_FUSED = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def hunyuan_video_names(transformer: Any) -> dict[str, torch.Tensor]:
    """As ``original_names``, of HunyuanVideo."""
    weights, out = dict(transformer.state_dict()), {}

    def renamed(part: str, names: dict[str, str]) -> str:
        return next((part.replace(ours, theirs, 1) for ours, theirs in names.items() if part.startswith(ours)), part)

    for name, tensor in weights.items():
        block = re.match(
            r"(?:(single_)?transformer_blocks|context_embedder\.token_refiner\.refiner_blocks)\.\d+\.", name
        )
        start, inside = (block[0], name[block.end() :]) if block else ("", name)
        text = name.startswith("context_embedder.")
        single = start.startswith("single_")
        to, _, ending = inside.rpartition(".")
        fused = {"self_attn_qkv": HUNYUAN_VIDEO_FUSED["img_attn_qkv"]} if text else HUNYUAN_VIDEO_FUSED
        if single:
            fused = {"linear1": (*HUNYUAN_VIDEO_FUSED["img_attn_qkv"], "proj_mlp")}
        into = next((key for key, parts in fused.items() if to in parts), None)
        if into is not None:
            if to == fused[into][0]:
                tensor = torch.cat([weights[f"{start}{part}.{ending}"] for part in fused[into]])
                to = into
            else:
                continue
        elif single:
            to = {"proj_out": "linear2", "attn.norm_q": "q_norm", "attn.norm_k": "k_norm"}.get(
                to, renamed(to, HUNYUAN_VIDEO_NAMES)
            )
        elif text and block:
            to = renamed(to, HUNYUAN_VIDEO_TEXT)
        elif text:
            to = "txt_in." + renamed(to.removeprefix("context_embedder."), HUNYUAN_VIDEO_TEXT)
        else:
            if to == "norm_out.linear":
                scale, shift = tensor.chunk(2)
                tensor = torch.cat([shift, scale])
            to = "final_layer.linear" if to == "proj_out" else renamed(to, HUNYUAN_VIDEO_NAMES)
        to = to.replace("net.0.proj", "fc1").replace("net.2", "fc2")
        start = start.replace("transformer_blocks", "blocks" if single else "double_blocks")
        start = start.replace("context_embedder.token_refiner.refiner_blocks", "txt_in.individual_token_refiner.blocks")
        out[f"{start}{to}.{ending}"] = tensor
    return out


WAN_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    ".attn1.": ".self_attn.",
    ".attn2.": ".cross_attn.",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".ffn.net.0.proj.": ".ffn.0.",
    ".ffn.net.2.": ".ffn.2.",
    ".norm2.": ".norm3.",
    "proj_out": "head.head",
}


def wan_names(transformer: Any) -> dict[str, torch.Tensor]:
    """As ``original_names``, of Wan."""
    out = {}
    for name, tensor in transformer.state_dict().items():
        new = {"scale_shift_table": "head.modulation"}.get(name, name.replace("scale_shift_table", "modulation"))
        for ours, theirs in WAN_NAMES.items():
            new = new.replace(ours, theirs)
        out[new] = tensor
    return out


Z_IMAGE_NAMES = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}


def z_image_names(transformer: Any) -> dict[str, torch.Tensor]:
    """As ``original_names``, of Z-Image, whose attention's three inputs are fused."""
    weights, out = transformer.state_dict(), {}
    for name, tensor in weights.items():
        if name.endswith(".attention.to_q.weight"):
            parts = [weights[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            out[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif not name.endswith((".attention.to_k.weight", ".attention.to_v.weight")):
            for ours, theirs in Z_IMAGE_NAMES.items():
                name = name.replace(ours, theirs)
            out[name] = tensor
    return out


def original_names(transformer: Any) -> dict[str, torch.Tensor]:
    """A transformer's weights as Black Forest Labs name and fuse them: the inverse of diffusers' conversion."""
    kind = type(transformer).__name__
    if kind.startswith("Flux3"):
        return flux3_names(transformer)
    if type(transformer).__name__.startswith("HunyuanVideo"):
        return hunyuan_video_names(transformer)
    if type(transformer).__name__.startswith("Wan"):
        return wan_names(transformer)
    if kind.startswith("QwenImage"):
        return {f"model.diffusion_model.{name}": tensor for name, tensor in transformer.state_dict().items()}
    if kind.startswith("ZImage"):
        return z_image_names(transformer)
    flux2 = type(transformer).__name__.startswith("Flux2")
    top, double, single = (
        (FLUX2_NAMES, FLUX2_DOUBLE, FLUX2_SINGLE) if flux2 else (FLUX1_NAMES, FLUX1_DOUBLE, FLUX1_SINGLE)
    )
    weights = dict(transformer.state_dict())
    out = {}
    for ending in ("weight", "bias"):
        swapped = weights.pop(f"norm_out.linear.{ending}", None)
        if swapped is not None:
            scale, shift = swapped.chunk(2)
            out[f"final_layer.adaLN_modulation.1.{ending}"] = torch.cat([shift, scale])
    for name, tensor in weights.items():
        stem, ending = name.rsplit(".", 1)
        block = re.match(r"(single_)?transformer_blocks\.(\d+)\.(.*)", stem)
        if stem.startswith("distilled_guidance_layer."):  # Chroma's
            own = stem.replace("linear_1", "in_layer").replace("linear_2", "out_layer")
            out[f"{own}.{'scale' if '.norms.' in own else ending}"] = tensor
            continue
        if block is None:
            out[f"{top[stem]}.{ending}"] = tensor
            continue
        inside = block[3]
        prefix = f"{'single' if block[1] else 'double'}_blocks.{block[2]}"
        names = single if block[1] else double
        if inside in names:
            scale = "norm." in names[inside]
            out[f"{prefix}.{names[inside]}.{'scale' if scale else ending}"] = tensor
            continue
        for fused, parts in FUSED.items():
            if inside == parts[0] and (fused == "linear1") == bool(block[1]):
                start = stem.removesuffix(inside)
                out[f"{prefix}.{fused}.{ending}"] = torch.cat([weights[f"{start}{part}.{ending}"] for part in parts])
    return out


VAE_NAMES = (
    (r"\.down_blocks\.(\d)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d)\.resnets\.", lambda match: f".up.{3 - int(match[1])}.block."),
    (r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f".up.{3 - int(match[1])}.upsample."),
    (r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}"),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"group_norm", "norm"),
    (r"to_out\.0", "proj_out"),
    (r"to_([qkv])\.", r"\1."),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"^quant_conv", "encoder.quant_conv"),
    (r"^post_quant_conv", "decoder.post_quant_conv"),
)
"""diffusers' names of an autoencoder's layers, and those of FLUX.1's ``ae.safetensors`` and of FLUX.2's."""


def original_vae_names(vae: Any) -> dict[str, torch.Tensor]:
    """An autoencoder's weights as Black Forest Labs name them: the inverse of diffusers' conversion."""
    out = {}
    for name, tensor in vae.state_dict().items():
        linear = ".attentions." in name and tensor.ndim == 2
        for pattern, other in VAE_NAMES:
            name = re.sub(pattern, other, name)
        out[name] = tensor[:, :, None, None] if linear else tensor
    return {name: tensor.contiguous() for name, tensor in out.items()}


def save_gguf_t5(encoder: Any, path: Path, kind: str) -> Path:
    """A T5 encoder as llama.cpp's converter writes it."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, encoder.config.num_layers)
    wanted = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "t5encoder")
    for name, tensor in encoder.state_dict().items():
        if name == "encoder.embed_tokens.weight":  # the same as shared.weight
            continue
        data = tensor.detach().numpy().astype(np.float32)
        stored = quantized(data, wanted) if data.ndim == 2 and data.shape[1] % 32 == 0 else data
        raw = wanted if stored is not data else None
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", stored, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_single(transformer: Any, path: Path, *, original: bool = False) -> Path:
    """One .safetensors file, with diffusers' names or the original ones."""
    weights = original_names(transformer) if original else transformer.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def save_gguf(transformer: Any, path: Path, kind: str, *, original: bool = False, size: int = 32) -> Path:
    """One .gguf file of a kind such as "Q8_0"; what cannot be quantised stays float32, as in the files people share.

    Kinds that the gguf package only reads get random blocks.

    Args:
        size: rows of a multiple of this many weights are quantised.
    """
    wanted = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "flux")
    weights = original_names(transformer) if original else transformer.state_dict()
    for name, tensor in weights.items():
        data = tensor.detach().numpy().astype(np.float32)
        if data.ndim == 2 and data.shape[1] % size == 0:
            writer.add_tensor(name, quantized(data, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(data: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """Rows of weights in GGUF's blocks."""
    try:
        return gguf.quants.quantize(data, kind)
    except NotImplementedError:
        block, stored = gguf.GGML_QUANT_SIZES[kind]
        # Bytes below 0x10 are small positive numbers where the format has a float16.
        shape = (data.shape[0], data.shape[1] // block * stored)
        return np.random.default_rng(0).integers(0, 0x10, shape, dtype=np.uint8)


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def edit_weights(path: Path, *, drop: str = "", reshape: str = "") -> None:
    """Take a tensor out of a safetensors file, or give it another shape."""
    weights = load_file(path)
    if drop:
        del weights[drop]
    if reshape:
        weights[reshape] = torch.zeros(*weights[reshape].shape, 2)
    save_file(weights, path, metadata={"format": "pt"})


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
