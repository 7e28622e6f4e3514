"""What the tensors of a single file say about what is inside, in diffusers' naming or the original one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from h2gen.errors import ModelError
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.families.contract import Family

IN_A_BLOCK = re.compile(r"(single_)?(?:transformer_)?blocks\.(\d+)\.|double_blocks\.(\d+)\.")
"""Found in the names of tensors that belong to a block of a transformer."""
_IMAGE_INPUT = ("x_embedder.weight", "img_in.weight")


def block_counts(names: Iterable[str]) -> tuple[int, int]:
    """The numbers of double-stream and single-stream blocks."""
    double: set[str] = set()
    single: set[str] = set()
    for name in names:
        block = IN_A_BLOCK.search(name)
        if block is not None:
            (single if block[1] else double).add(block[2] or block[3])
    return len(double), len(single)


def takes_guidance(names: Iterable[str]) -> bool:
    """Whether the transformer was distilled to take a guidance scale."""
    return any("guidance_in." in name or "guidance_embedder." in name for name in names)


def traits(double: int | None, single: int | None, guidance: bool | None, channels: int | None) -> tuple[str, ...]:
    """What a file must have in common with its base, in words: the numbers of its blocks, and what it takes."""
    return (
        f"has {double} + {single} blocks",
        f"takes {'a' if guidance else 'no'} guidance scale",
        f"takes {channels} input channels",
    )


def input_channels(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The channels of a token of the picture; None if no tensor says."""
    return next((shapes[name][1] for name in _IMAGE_INPUT if len(shapes.get(name, ())) == 2), None)


class Kind(NamedTuple):
    """Something that is not a transformer of one of the families.

    Args:
        what: it is, with its article.
        marks: regular expressions; a file with one of them in a tensor's name, or in its own, is of this kind.
        advice: a sentence that says what to do with it.
    """

    what: str
    marks: tuple[str, ...]
    advice: str

    def has_mark(self, names: Iterable[str]) -> bool:
        marks = re.compile("|".join(self.marks))
        return any(marks.search(name) for name in names)

    def refusal(self, file: Path) -> ModelError:
        """The error for a file of this kind that was given as a model."""
        return ModelError(f"{printable(str(file))!r} is {self.what}, not a model that h2gen loads. {self.advice}.")


ONLY = "h2gen runs FLUX.1, FLUX.2, FLUX.3, Chroma, Qwen-Image, Z-Image, HunyuanVideo and Wan 2.1"
_LORA = "Give it with --lora, together with the model that it is for"
_AUTOENCODER = "Give it with --vae, together with a model"
_ENCODER = "Give it with --text-encoder, together with a model"
_PYTHON = "h2gen's command line does not use it; in Python, add it to diffusers' pipeline and call h2gen.h2_cache(pipe)"

_CONTROLNET = "Give it with --controlnet, next to a --model such as dev and a picture with --control"
_REDUX = "Give a picture with --redux; h2gen then loads Redux from its repository, or from the folder in --redux-model"

_LOOK_ALIKE = (
    Kind("a LoRA", (r"lora_", r"\.lora", r"\.(lokr|hada)_w", r"\.oft_", r"\.dora_scale", r"\.diff(_b)?$"), _LORA),
    Kind("a ControlNet", (r"controlnet_", r"control_model\.", r"input_hint_block"), _CONTROLNET),
    Kind("an IP-Adapter", (r"\bip_adapter", r"^image_proj\."), _PYTHON),
    Kind("a transformer of Stable Diffusion 3", (r"\bjoint_blocks\.", r"\bpos_embed\.proj\."), ONLY),
    Kind("a transformer of Qwen-Image 2.1", (r"\btxt_in\.text_norm\.",), ONLY),
    Kind("a transformer of Chroma Radiance", (r"\bnerf_",), ONLY),
)
"""Kinds with tensors that are named like a family's."""

_OTHER = (
    Kind("a checkpoint of Stable Diffusion or SDXL", (r"\binput_blocks\.", r"\bdown_blocks\.0\.resnets\."), ONLY),
    Kind("FLUX.1 Redux", (r"^redux_",), _REDUX),
    Kind("PuLID", (r"^pulid_",), _PYTHON),
    Kind("a VAE", (r"\b(en|de)coder\.(conv_in|up_blocks|down_blocks|up\.|down\.)",), _AUTOENCODER),
    Kind(
        "a text encoder",
        (
            r"\bencoder\.block\.\d+\.layer\.",  # T5
            r"\btext_model\.(encoder|embeddings)\.",  # CLIP
            r"\blayers\.\d+\.self_attn\.",  # Mistral, Qwen
            r"^(enc\.)?blk\.\d+\.",  # the same as .gguf
        ),
        _ENCODER,
    ),
    Kind("an embedding", (r"^(emb_params|string_to_param|clip_[lg]|t5xxl|<.*>)$",), _PYTHON),
)


def other_kind(names: Collection[str], family: Family | None = None, file: Path | None = None) -> Kind | None:
    """What a file holds that is not a transformer of a family; None if that cannot be said.

    Args:
        names: of its tensors.
        family: that claims the file; then only kinds with names like a family's count.
        file: whose own name may tell.
    """
    kinds = _LOOK_ALIKE if family is not None else (*_LOOK_ALIKE, *_OTHER)
    by_tensors = next((kind for kind in kinds if kind.has_mark(names)), None)
    if by_tensors is not None or family is None or file is None:
        return by_tensors
    return next((kind for kind in family.told_by_name if kind.has_mark([file.name])), None)
