"""CLIP-IQA and the CLIP score: how a CLIP model rates an image.

torchmetrics has both, but cannot use the features that transformers 5 returns; so the same formulas are here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from h2gen.errors import H2GenError, ModelError
from h2gen.families.flux1 import DEV
from h2gen.files import expanded
from h2gen.models.catalogue import REPO_ID, Checkpoint
from h2gen.models.files import AGAIN, read_json, shown, weight_files
from h2gen.models.hub import VARIANTS, reach
from h2gen.models.translate_errors import brief, explain
from h2gen.wording import printable

DEFAULT = "openai/clip-vit-large-patch14"
"""1.7 GB; most published CLIP scores use it. CLIP-IQA's authors used OpenAI's ResNet-50 without position embeddings,
which transformers does not have; H2-Cache's authors do not say what they used."""

ANCHORS = ("Good photo.", "Bad photo.")
"""CLIP-IQA's prompts for quality."""

_OTHER = f"give another, such as {DEFAULT}"
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class Missing(ModelError):
    """A repository is not on this machine, and was not or could not be downloaded."""


def find(model: str, *, download: bool) -> Path:
    """The folder of a CLIP model.

    Args:
        model: a folder in transformers' layout, or a repository on huggingface.co.
        download: fetch the repository if it is not on this machine.

    Raises:
        Missing: the repository is not available.
        ModelError: there is no such folder, or it does not hold a whole CLIP model.
    """
    path = expanded(model)
    if os.path.isdir(path):
        _check(Path(path))
        return Path(path)
    if model.startswith((".", "/", "~")) or not REPO_ID.fullmatch(model):
        raise ModelError(
            f"There is no folder of a CLIP model at {printable(model)!r}; give one in transformers' layout, or a "
            f"repository such as {DEFAULT}."
        )
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json")
    if isinstance(config, str) and _is_whole(folder := Path(config).parent):
        return folder
    if not download:
        raise Missing(f"{model!r} is not on this machine; name the metric in --metrics to download it.")
    try:
        reach(model, "config.json")
        folder = Path(
            snapshot_download(
                model,
                allow_patterns=["*.json", "*.txt", "*.safetensors"],
                ignore_patterns=["*/*", "open_clip*", *VARIANTS],
            )
        )
        _check(folder)
    except ModelError as error:
        raise Missing(str(error)) from error
    except Exception as error:
        raise Missing(explain(error, Checkpoint(model, "hub", model, None, DEV))) from error
    return folder


class Clip:
    """A CLIP model, loaded at the first image.

    Args:
        model: its name: a folder or a repository.
        folder: as ``find`` returned it.
        device: where it runs, in float32.
    """

    def __init__(self, model: str, folder: Path, device: str = "cpu") -> None:
        self._folder = folder
        self._device = device
        name = model if REPO_ID.fullmatch(model) and not os.path.isdir(model) else folder.resolve().name
        # The hash distinguishes models of the same name; a folder's path is private.
        digest = _sha256(weight_files(folder))
        self.source = f"transformers {version('transformers')}, {printable(name)}, sha256 {digest[:12]}"
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._read: dict[str, torch.Tensor] = {}

    def quality(self, image: Image.Image, prompt: str = "") -> float:
        """CLIP-IQA, from 0 to 1: how much better "Good photo." describes the image than "Bad photo.".

        The prompt is ignored. CLIP sees the central square of an image, usually at 224x224 pixels.

        Raises:
            ModelError: the model cannot be loaded.
        """
        good, bad = (self._cosine(image, anchor) for anchor in ANCHORS)
        scale = float(self._parts[0].logit_scale.detach().exp())
        return float(torch.tensor([scale * good, scale * bad], dtype=torch.float64).softmax(0)[0])

    def score(self, image: Image.Image, prompt: str) -> float:
        """The CLIP score, from 0 to 100: the cosine of image and prompt in per cent, 0 if it is negative.

        The prompt is cut off after the tokens that the model reads, usually 77.

        Raises:
            ModelError: the model cannot be loaded.
        """
        return max(100 * self._cosine(image, prompt), 0.0)

    @torch.no_grad()
    def _cosine(self, image: Image.Image, text: str) -> float:
        return float((self._picture(image) * self._text(text)).sum())

    def _picture(self, image: Image.Image) -> torch.Tensor:
        model, _, processor = self._parts
        pixels = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        if self._seen is None or not torch.equal(self._seen[0], pixels):
            self._seen = pixels, _direction(model.get_image_features(pixel_values=pixels.to(self._device)))
        return self._seen[1]

    def _text(self, text: str) -> torch.Tensor:
        if text not in self._read:
            model, tokenizer, _ = self._parts
            # One at a time, without padding: a picture's score does not depend on the others.
            tokens = tokenizer(
                text, truncation=True, max_length=model.config.text_config.max_position_embeddings, return_tensors="pt"
            )
            self._read[text] = _direction(model.get_text_features(input_ids=tokens["input_ids"].to(self._device)))
        return self._read[text]

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        import transformers

        from h2gen.models.load import quiet

        # The PIL version, even if torchvision allows the other: they differ slightly. Before
        # transformers 5.4 it had the plain name.
        processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        try:
            with quiet():
                model, report = transformers.CLIPModel.from_pretrained(
                    self._folder,
                    dtype=torch.float32,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
                if lacking := sorted(report["missing_keys"]):
                    raise ModelError(f"{shown(self._folder)} lacks {lacking[0]}, one of its weights; {AGAIN}.")
                return (
                    model.eval().to(self._device),
                    transformers.CLIPTokenizer.from_pretrained(self._folder, local_files_only=True),
                    processor.from_pretrained(self._folder, local_files_only=True),
                )
        except H2GenError:
            raise
        except Exception as error:
            raise ModelError(f"The CLIP model in {shown(self._folder)} cannot be loaded: {brief(error)}") from error


def _direction(features: Any) -> torch.Tensor:
    """The output of ``get_image_features`` or ``get_text_features``, scaled to length 1."""
    direction: torch.Tensor = torch.nn.functional.normalize(features.pooler_output, dim=-1)
    return direction


def _check(folder: Path) -> None:
    """Raise a ``ModelError`` unless the folder holds a whole CLIP model."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{shown(folder)} is not a CLIP model in transformers' layout: it has no config.json; {_OTHER}."
        )
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise ModelError(
            f"{shown(folder)} is not a CLIP model: its config.json says {printable(repr(kind))}; {_OTHER}."
        )
    weight_files(folder)
    for needed in (_TOKENIZERS, _PROCESSORS):
        if not any((folder / name).is_file() for name in needed):
            raise ModelError(f"{shown(folder)} has no {' or '.join(needed)}; {AGAIN}.")


def _is_whole(folder: Path) -> bool:
    try:
        _check(folder)
    except ModelError:
        return False
    return True


def _sha256(files: Iterable[Path]) -> str:
    """The hash of one file, or of the hashes of several."""
    digests = []
    for file in files:
        blob = file.resolve().name
        if not re.fullmatch("[0-9a-f]{64}", blob):  # the hub's cache names large files by their hash
            digest = hashlib.sha256()
            with file.open("rb", buffering=0) as stream:
                while block := stream.read(2**20):
                    digest.update(block)
            blob = digest.hexdigest()
        digests.append(blob)
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
