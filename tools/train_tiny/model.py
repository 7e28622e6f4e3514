"""The transformer, and the assembled pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from tools.train_tiny.autoencoder import LATENT_CHANNELS
from tools.train_tiny.text import WIDTH, Text

PATCH = 16
"""Side of a token in pixels: the autoencoder's 8, packed 2 by 2."""
_DOUBLE, _SINGLE = 8, 16
_HEADS = 2
"""Few heads, each wide enough for rotary waves long enough to tell positions apart."""
SHALLOW = 4
"""A shallow transformer has this factor fewer blocks, and learns what needs no more depth this much faster."""


def build_transformer(width: int, shallow: bool = False) -> FluxTransformer2DModel:
    """A new transformer of a width, whose blocks add nothing yet; diffusers leaves torch's default initialization."""
    fewer = SHALLOW if shallow else 1
    head = width // _HEADS
    axis = 2 * round(head * 7 / 32)  # of the rotary embedding: rows and columns take seven eighths, as in FLUX.1
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=_DOUBLE // fewer,
        num_single_layers=_SINGLE // fewer,
        attention_head_dim=head,
        num_attention_heads=_HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(head - 2 * axis, axis, axis),
    )
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        elif re.search(r"(to_|add_)[qkv](_proj)?\.bias$", name):
            # Only attention sees positions; parts that do not depend on the token attend to them from the start.
            nn.init.normal_(parameter, std=0.3 if "v" in name.split(".")[-2] else 1.0)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    modulations = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        modulations += [block.norm1.linear, block.norm1_context.linear]
    modulations += [block.norm.linear for block in transformer.single_transformer_blocks]
    for layer in modulations:
        nn.init.zeros_(layer.weight)
    return transformer


def deepened(shallow: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the full transformer that computes the same as a shallow one.

    Each block is followed by copies of itself, ``SHALLOW`` in all, whose gates are closed, so that they add nothing
    yet. Scaling each block down instead, like smaller steps of a differential equation, makes a trained model forget.
    """
    deep: dict[str, torch.Tensor] = {}
    for name, value in shallow.items():
        found = re.search(r"(?P<kind>(single_)?transformer_blocks)\.(?P<number>\d+)\.(?P<rest>.*)", name)
        if found is None:
            deep[name] = value
            continue
        added = value
        if re.fullmatch(r"norm(1|1_context)?\.linear\.(weight|bias)", found["rest"]):
            added = value.clone()
            modulations = 1 if found["kind"].startswith("single") else 2
            added.unflatten(0, (modulations, 3, -1))[:, 2] = 0  # shift, scale, gate
        for copy in range(SHALLOW):
            number = SHALLOW * int(found["number"]) + copy
            deep[f"{name[: found.start()]}{found['kind']}.{number}.{found['rest']}"] = added if copy else value
    return deep


def without_guidance(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The same transformer without the guidance input, which was always 1: folds its embedding into the timestep's."""
    taken = FluxTransformer2DModel.from_config({**transformer.config, "guidance_embeds": False})
    taken.load_state_dict({k: v for k, v in transformer.state_dict().items() if "guidance_embedder" not in k})
    embed = transformer.time_text_embed
    with torch.no_grad():
        one = embed.guidance_embedder(embed.time_proj(torch.tensor([1000.0])))[0]  # the transformer's own factor
        taken.time_text_embed.timestep_embedder.linear_2.bias += one
    return taken.eval()


def pack(latents: torch.Tensor) -> torch.Tensor:
    """``(B, C, H, W)`` to tokens ``(B, H/2 * W/2, 4 C)``, as in the pipeline."""
    batch, channels, height, width = latents.shape
    packed: torch.Tensor = FluxPipeline._pack_latents(latents, batch, channels, height, width)
    return packed


def position_ids(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Position ids ``(H/2 * W/2, 3)`` of latents of ``height`` by ``width``, as in the pipeline."""
    ids: torch.Tensor = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, device, torch.float32)
    return ids


def assemble(
    vae: AutoencoderTiny, text: Text, clip: CLIPTextModel, t5: T5EncoderModel, transformer: FluxTransformer2DModel
) -> FluxPipeline:
    """The pipeline, as diffusers will load it."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=clip,
        tokenizer=text.clip,
        text_encoder_2=t5,
        tokenizer_2=text.t5,
        transformer=transformer,
    )
