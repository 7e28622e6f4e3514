"""What is known about a ControlNet of FLUX.1 before it is loaded: its configuration, its kinds, the models it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from h2gen.families.single_file import block_counts, takes_guidance

CONTROLNET = "FluxControlNetModel"
"""The class in diffusers."""

_MARK = "controlnet_x_embedder.weight"
_XLABS = "controlnet_blocks.0.weight"
"""XLabs' own layout has these as well, but no other of diffusers' names."""
_WIDTHS = (
    ("in_channels", "channels of a latent token"),
    ("joint_attention_dim", "channels of a text token"),
    ("pooled_projection_dim", "channels of the pooled text"),
)


def is_controlnet(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file with these tensors is a ControlNet of FLUX.1 with diffusers' names."""
    return _MARK in shapes and "context_embedder.weight" in shapes and "x_embedder.weight" in shapes


def is_xlabs(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file with these tensors is a ControlNet in the layout of XLabs' own program."""
    return _XLABS in shapes and any("img_attn.qkv" in name for name in shapes)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration of a ControlNet without a ``config.json``, from the shapes of its tensors.

    Its rotary embeddings have no tensors: they are FLUX.1's own wherever the heads are as wide as FLUX.1's.
    """
    double, single = block_counts(name for name in shapes if "transformer_blocks." in name)
    inner, channels = shapes["x_embedder.weight"]
    head = next((shape[0] for name, shape in shapes.items() if name.endswith("attn.norm_q.weight")), 128)
    modes = shapes.get("controlnet_mode_embedder.weight")
    hint = shapes.get("input_hint_block.conv_in.weight")
    return {
        "_class_name": CONTROLNET,
        "in_channels": channels,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": takes_guidance(shapes),
        "num_mode": None if modes is None else modes[0],
        "patch_size": 1 if hint is None else 2,
        "conditioning_embedding_channels": None if hint is None else _hint_channels(shapes),
    }


def _hint_channels(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return shapes["input_hint_block.conv_out.weight"][0]


def misfit(net: Mapping[str, Any], transformer: Mapping[str, Any]) -> str | None:
    """Why a ControlNet does not fit a transformer of FLUX.1, such as ``has 3072 channels ..., and the model 64``.

    Args:
        net, transformer: their configurations; what they leave out has the default of FLUX.1.
    """
    ours, theirs = with_defaults(net), with_defaults(transformer)
    for side in (ours, theirs):
        side["width"] = side["attention_head_dim"] * side["num_attention_heads"]
    for key, what in (("width", "channels of a token inside"), *_WIDTHS):
        if ours[key] != theirs[key]:
            return f"has {ours[key]} {what}, and the model has {theirs[key]}"
    if [*ours["axes_dims_rope"]] != [*theirs["axes_dims_rope"]]:
        return "has other position embeddings than the model"
    return None


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of FLUX.1 for what it leaves out."""
    defaults = {
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": False,
        "axes_dims_rope": [16, 56, 56],
        "num_mode": None,
        "conditioning_embedding_channels": None,
    }
    return {**defaults, **{key: value for key, value in config.items() if value is not None}}


def wrong_type(config: Mapping[str, Any]) -> str | None:
    """The setting of a configuration whose value is of the wrong type; None if all are right."""
    for key, default in with_defaults({}).items():
        value = config.get(key)
        kinds: Any = list if isinstance(default, list) else int
        if value is not None and not isinstance(value, kinds):
            return key
    return None


def mixture(nets: Sequence[Mapping[str, Any]]) -> str | None:
    """Why ControlNets cannot be used together: in what the first and another one differ; None if they can.

    diffusers adds up their samples block by block, takes the first one's kind for all, and drops what has no partner.
    """
    first, *others = [with_defaults(net) for net in nets]
    for other in others:
        for key, what in (
            ("num_layers", "double-stream blocks"),
            ("num_single_layers", "single-stream blocks"),
        ):
            if first[key] != other[key]:
                return f"one has {first[key]} {what} and another {other[key]}"
        if first["guidance_embeds"] != other["guidance_embeds"]:
            return "one takes a guidance scale and another does not"
        if (first["conditioning_embedding_channels"] is None) != (other["conditioning_embedding_channels"] is None):
            return "one reads pixels, as XLabs' do, and another latents"
    return None
