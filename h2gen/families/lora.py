"""What the tensors of a LoRA say about it: its layout, the model that it is for, its ranks and what it trains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from h2gen.families.chroma import Chroma
from h2gen.families.flux1 import Flux1
from h2gen.families.flux2 import Flux2
from h2gen.families.hunyuan_video import HunyuanVideo
from h2gen.families.qwen_image import QwenImage
from h2gen.families.wan import Wan
from h2gen.families.z_image import ZImage

Shapes = Mapping[str, tuple[int, ...]]

_LAYOUTS = (
    ("FLUX Control", r"query_norm\.scale"),
    ("XLabs", r"\.processor\."),
    ("Kohya", r"^lora_(unet|transformer|te\d?)_|\.lora_down\."),
    ("LyCORIS", r"\.(lokr|hada)_w|^lycoris_"),
    ("PEFT", r"^base_model\."),
    ("ComfyUI", r"^diffusion_model\.|^(double|single)_blocks\.|^blocks\.\d+\.(self|cross)_attn"),
    ("diffusers", r"\.lora_[AB]\.|\.lora\.|lora_linear_layer|\.lora_(up|down)"),
)
"""The name of each layout, and an expression that only its tensors' names have; the first that fits counts."""

_OTHERS = (
    ("FLUX.3", r"mode_blocks|early_stream_modulations"),
    ("Stable Diffusion or SDXL", r"^(lora_unet_|unet\.)(down|up|mid|input|output|middle)_block"),
    ("Stable Diffusion 3", r"joint_blocks"),
    (QwenImage.title, r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)"),
    (
        HunyuanVideo.title,
        r"token_refiner|(img|txt)_(mlp[._]fc|mod[._]linear)|single_blocks[._]\d+[._]modulation[._]linear"
        r"|double_blocks\.\d+\.(img|txt)_attn_",
    ),
    (Wan.title, r"(^|\.|unet_)blocks[._]\d+[._]((self|cross)_attn|attn[12][._]|ffn[._])"),
    (ZImage.title, r"\blayers[._]\d+[._](attention|feed_forward|adaLN)"),
)
"""Models, and what only the names of their layers have."""
_LOADED = QwenImage.title, ZImage.title, HunyuanVideo.title, Wan.title
"""Those of them that take LoRAs."""

_FLUX = Flux1.title, Flux2.title, Chroma.title
_FLUX1_LAST, _HUNYUAN_LAST = (18, 37), (19, 39)
"""The last double-stream and single-stream block of FLUX.1 and of HunyuanVideo, whose layers diffusers names alike."""
_LISTS = r"(?<!single_)(?:double|transformer)_blocks|(?:^|\.|unet_)blocks", r"single_(?:transformer_)?blocks"
"""The names of the lists of double-stream blocks, or of a model's only list, and of single-stream blocks."""
_WIDENED = 128
"""Channels of FLUX.1's input with a Control LoRA: those of its own latents and of a picture's."""
_BLOCKS = r"(?:double_blocks|single_blocks|(?:single_)?transformer_blocks)[._]\d+[._]"
_UP = r"\.(lora_B|lora_up|lora\.up|lora_linear_layer\.up|up)(\.weight)?$"
_DOWN = r"\.(lora_A|lora_down|lora\.down|lora_linear_layer\.down|down)(\.weight)?$"
_END = re.compile(
    r"\.(lora_[AB]|lora_(up|down)|lora\.(up|down)|lora_linear_layer\.(up|down)|lok?h?r_\w+|hada_\w+|alpha|dora_scale|"
    r"diff(_b)?|up|down|query_norm|key_norm|scale)(\.(weight|bias|scale))?$"
)
_TEXT = (
    ("T5", r"^(lora_te[23]_|text_encoder_2\.|text_encoders\.t5)"),
    ("CLIP", r"^(lora_te1?_|text_encoder\.|text_encoders\.)"),
)


class LoraFacts(NamedTuple):
    """What a LoRA file is.

    Args:
        layout: in which its tensors are named, such as "Kohya".
        family: the model that it is for, such as "FLUX.1"; empty if that cannot be said.
        families: titles of h2gen's families that it may be for; none if it is for another model.
        width: features of the transformer's streams; None if no tensor says.
        ranks: from the smallest on.
        parts: what it trains: "transformer", "CLIP", "T5".
        layers: number of trained layers.
        blocks: numbers of double-stream and single-stream blocks that it trains; of a model with one list, its blocks
            and 0.
        tensors: in the file.
        unsupported: what is in it that diffusers does not load, such as "DoRA scales"; empty if nothing.
        control: whether it is a Control LoRA, which also widens the model's input for the latents of a picture.
    """

    layout: str
    family: str
    families: tuple[str, ...]
    width: int | None
    ranks: tuple[int, ...]
    parts: tuple[str, ...]
    layers: int
    blocks: tuple[int, int]
    tensors: int
    unsupported: str
    control: bool

    def __str__(self) -> str:
        """Such as ``for FLUX.1: rank 16, 494 layers of the transformer in 19 + 38 blocks, in Kohya's layout``."""
        return ": ".join(
            (f"for {self.family or 'an unknown model'}", ", ".join(text for _, text in self.rows() if text))
        )

    def rows(self) -> Iterator[tuple[str, str]]:
        """The facts apart from the model, each with a name for a table."""
        ranks = f"{self.ranks[0]} to {self.ranks[-1]}" if len(self.ranks) > 1 else "".join(map(str, self.ranks))
        yield "rank", f"rank {ranks}" if ranks else ""
        inside = in_blocks(self.blocks)
        yield "trains", f"{self.layers} layer{'s' * (self.layers != 1)} of the {' and '.join(self.parts)}{inside}"
        yield "layout", f"{self.layout} layout"


def in_blocks(blocks: Sequence[int]) -> str:
    """Where a LoRA's layers are, such as `` in 19 + 38 blocks``; empty if none is in a block."""
    return f" in {' + '.join(map(str, blocks if blocks[-1] else blocks[:1]))} blocks" if any(blocks) else ""


def read_lora(shapes: Shapes) -> LoraFacts | None:
    """What a file with these tensors is as a LoRA; None if it is not one.

    Args:
        shapes: by the tensors' names.
    """
    layout = next((name for name, mark in _LAYOUTS if any(re.search(mark, each) for each in shapes)), "")
    if not layout or not any(re.search(rf"{_UP}|\.(lokr|hada)_w|lora", name) for name in shapes):
        return None
    layers = {_END.sub("", name) for name in shapes}
    parts = Counter(_part(name) for name in layers)
    family, families = _family(shapes)
    down = {name: shape for name, shape in shapes.items() if re.search(_DOWN, name) and len(shape) > 1}
    return LoraFacts(
        layout,
        family,
        families,
        _width(shapes),
        tuple(sorted({shape[0] for shape in down.values()})),
        tuple(parts),
        len(layers),
        (len(_numbers(shapes, _LISTS[0])), len(_numbers(shapes, _LISTS[1]))),
        len(shapes),
        _unsupported(shapes, layout),
        any(re.search(r"query_norm\.scale|norm_added_q", name) for name in shapes) or _inputs(shapes) == _WIDENED,
    )


def _inputs(shapes: Shapes) -> int | None:
    """The channels of the model's input that the LoRA was trained for; None if it does not train that layer."""
    found = re.compile(rf"(^|\.)(x_embedder|img_in){_DOWN}")
    return next((shape[1] for name, shape in shapes.items() if found.search(name) and len(shape) == 2), None)


def _part(name: str) -> str:
    return next((part for part, mark in _TEXT if re.search(mark, name)), "transformer")


def _numbers(shapes: Shapes, lists: str) -> set[int]:
    """The numbers of the blocks of a list that a LoRA trains."""
    found = re.compile(rf"(?:{lists})[._](\d+)")
    return {int(match[1]) for name in shapes if (match := found.search(name))}


def _family(shapes: Shapes) -> tuple[str, tuple[str, ...]]:
    """The model that a LoRA is for, in words, and h2gen's families that it may be for."""
    for title, mark in _OTHERS:
        if any(re.search(mark, name) for name in shapes):
            return title, (title,) if title in _LOADED else ()
    inside = [name for name in shapes if re.search(_BLOCKS, name)]
    if not inside:
        return "", (*_FLUX, *_LOADED)  # such as one of a text encoder only
    ratio = _ratio(shapes)
    if ratio in (6, 9) or any(re.search(r"to_qkv_mlp_proj|\.ff(_context)?\.linear_(in|out)", name) for name in inside):
        return Flux2.title, (Flux2.title,)
    last = tuple(max(_numbers(shapes, each), default=None) for each in _LISTS)
    if last[0] == _HUNYUAN_LAST[0]:
        return HunyuanVideo.title, (HunyuanVideo.title,)
    if ratio in (4, 7) or any(
        re.search(r"ff(_context)?[._]net[._]|proj_mlp|norm1?[._]linear|mod[._]lin", name) for name in inside
    ):
        if last[1] == _HUNYUAN_LAST[1]:
            return HunyuanVideo.title, (HunyuanVideo.title,)
        complete = all(found in (None, most) for found, most in zip(last, _FLUX1_LAST, strict=True))
        if ratio == 4 or complete or any(re.search(r"mlp[._]\d|mod[._]lin(?!ear)", name) for name in inside):
            return Flux1.title, (Flux1.title, Chroma.title)
        return f"{Flux1.title} or {HunyuanVideo.title}", (Flux1.title, Chroma.title, HunyuanVideo.title)
    if not any("single" in name for name in inside) and any("transformer_blocks" in name for name in inside):
        return f"FLUX, {QwenImage.title} or {HunyuanVideo.title}", (*_FLUX, QwenImage.title, HunyuanVideo.title)
    return f"FLUX or {HunyuanVideo.title}", (*_FLUX, HunyuanVideo.title)


def _ratio(shapes: Shapes) -> int | None:
    """Outputs per input of a layer that differs between FLUX.1 and FLUX.2, in the original names."""
    differs = r"(single_blocks[._]\d+[._]linear1|double_blocks[._]\d+[._]img_mlp[._]0)\b"
    factors = {name: shape for name, shape in shapes.items() if len(shape) == 2 and re.search(differs, name)}
    for name, shape in factors.items():
        if re.search(_UP, name):
            width = next((each[1] for other, each in factors.items() if _END.sub("", other) == _END.sub("", name)
                          and re.search(_DOWN, other)), 0)  # fmt: skip
            return shape[0] // width if width else None
    return None


def _width(shapes: Shapes) -> int | None:
    """The inputs of the layers that take the streams as they are."""
    takes = (
        r"(to_q|to_k|to_v|add_q_proj|img_attn[._]qkv|txt_attn[._]qkv|self_attn[._][qkv]|linear1|proj_mlp|"
        r"to_qkv_mlp_proj|qkv_lora\d?)"
    )
    found = re.compile(rf"[._]{takes}{_DOWN}")
    return next((shape[1] for name, shape in shapes.items() if found.search(name) and len(shape) == 2), None)


def _unsupported(shapes: Shapes, layout: str) -> str:
    for what, mark in (("DoRA scales", r"dora_scale"), ("LoHa factors", r"\.hada_w"), ("OFT blocks", r"\.oft_")):
        if any(re.search(mark, name) for name in shapes):
            return what
    return ""
