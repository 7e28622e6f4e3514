"""Evaluation of the model: pictures of fixed prompts and seeds, judged by the classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.utils import make_image_grid
from PIL import Image

import h2gen
from h2gen.models.catalogue import resolve
from h2gen.models.content_hash import content_hash
from tools.train_tiny import autoencoder
from tools.train_tiny.captions import Phrase, on_background
from tools.train_tiny.classifier import Classifier, accuracy, ranks_of, top_k_accuracy
from tools.train_tiny.colours import BACKGROUNDS
from tools.train_tiny.concepts import COMMON, concepts
from tools.train_tiny.render import to_images
from tools.train_tiny.scenes import SHAPES
from tools.train_tiny.sprites import STYLES, Sprites

_TOGETHER = 10
"""Pictures per batch."""
_NEVER = 1e-9
"""Thresholds so low that the cache measures and never reuses."""


@dataclass(frozen=True)
class Question:
    """A prompt and what its picture must show: concepts from left to right or, if ``above``, from top to bottom, and
    optionally the background colour."""

    prompt: str
    seed: int
    concepts: tuple[int, ...]
    background: str | None = None
    above: bool = False


@dataclass(frozen=True)
class Calling:
    """Arguments of the pipeline."""

    width: int = 128
    height: int = 128
    steps: int = 28
    guidance: float = 1.0
    cfg: float = 3.0
    length: int = 24


def load(folder: Path, device: torch.device) -> FluxPipeline:
    """Load a pipeline that ``train`` saved, in float32 with weights rounded to half precision, as shipped."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float16, local_files_only=True).to(device, torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def questions(names: int, singles: int = 200, pairs: int = 100) -> list[Question]:
    """Prompts with fixed seeds: "a NAME" for the most common concepts, then pairs of things on a coloured background,
    alternately side by side and one above the other."""
    known = concepts()
    chosen = np.linspace(0, names - 1, singles).round().astype(int) if names > singles else np.arange(singles) % names
    asked = [Question(str(Phrase(known[i].name)), seed, (int(i),)) for seed, i in enumerate(chosen)]
    rng = np.random.default_rng(0)
    colours = [colour for colour in BACKGROUNDS if colour != "white"]
    for seed in range(singles, singles + pairs):
        first, second = (int(i) for i in rng.choice(COMMON, 2, replace=False))
        colour = colours[rng.integers(len(colours))]
        above = bool(seed % 2)
        things = f"{Phrase(known[first].name)} {'above' if above else 'beside'} {Phrase(known[second].name)}"
        asked.append(Question(on_background(things, colour), seed, (first, second), colour, above))
    return asked


def evaluate(
    pipe: FluxPipeline,
    judge: Classifier,
    sprites: Sprites,
    asked: Sequence[Question],
    calling: Calling,
    folder: Path,
    elsewhere: Sequence[Question] = (),
    unseen: Mapping[str, Classifier] | None = None,
) -> dict[str, Any]:
    """Generate the pictures, judge them, and write ``report.json`` and the unselected ``sheet.png`` into ``folder``.

    ``elsewhere`` are questions for one thing each, asked at every other size and shape of scenes; each size gets its
    own sheet. ``unseen`` maps a style to a judge trained without it: its accuracy on that style shows how far the
    judge can be trusted with pictures that it was not trained on.
    """
    device = pipe.device
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _answers(pipe, asked, calling)
    sheet(pictures, folder / "sheet.png")
    alone = [i for i, question in enumerate(asked) if len(question.concepts) == 1]
    report: dict[str, Any] = {
        "calling": asdict(calling),
        "content_hash": content_hash(resolve(pipe.name_or_path)),
        "pictures": len(asked),
    }
    if alone:
        wanted = [asked[i].concepts[0] for i in alone]
        report["names"] = max(wanted) + 1
        report["retrieval"] = top_k_accuracy(judge, pictures[alone].to(device), wanted)
    pairs = [i for i, question in enumerate(asked) if len(question.concepts) == 2]
    if pairs:
        report["composed"] = _composed(judge, pictures[pairs].to(device), [asked[i] for i in pairs])
    report["sizes"] = {}
    others = [question.concepts[0] for question in elsewhere]
    for height, width in SHAPES if elsewhere else ():
        other = replace(calling, height=height, width=width)
        if other != calling:
            pictures = _answers(pipe, elsewhere, other)
            report["sizes"][f"{width}x{height}"] = top_k_accuracy(judge, _middle(pictures).to(device), others)
            sheet(pictures, folder / f"sheet-{width}x{height}.png")
    report["judge"] = accuracy(judge, sprites, device, STYLES)
    report["unseen_styles"] = {
        style: accuracy(model, sprites, device, [style]) for style, model in (unseen or {}).items()
    }
    report["autoencoder"] = autoencoder.quality(pipe.vae, sprites, device)
    report["changes"] = {steps: _changes(pipe, asked[:4], calling, steps) for steps in (28, 50)}
    (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def sheet(pictures: torch.Tensor, path: Path, columns: int = 20) -> None:
    """All pictures on one sheet, in order."""
    images = to_images(pictures)
    images += [Image.new("RGB", images[0].size, "white")] * (-len(images) % columns)
    make_image_grid(images, len(images) // columns, columns).save(path)


def _answers(pipe: FluxPipeline, asked: Sequence[Question], calling: Calling) -> torch.Tensor:
    """One picture per question, in small batches: ``(N, 3, height, width)``, -1 to 1."""
    return torch.cat([_make(pipe, asked[i : i + _TOGETHER], calling) for i in range(0, len(asked), _TOGETHER)])


def _make(pipe: FluxPipeline, asked: Sequence[Question], calling: Calling) -> torch.Tensor:
    """``(B, 3, height, width)``, -1 to 1."""
    made = pipe(
        [question.prompt for question in asked],
        negative_prompt=[""] * len(asked) if calling.cfg > 1 else None,
        true_cfg_scale=calling.cfg,
        guidance_scale=calling.guidance,
        num_inference_steps=calling.steps,
        height=calling.height,
        width=calling.width,
        max_sequence_length=calling.length,
        generator=[torch.Generator().manual_seed(question.seed) for question in asked],
        output_type="pt",
    ).images
    return made.float().cpu() * 2 - 1  # type: ignore[no-any-return]


def _middle(pictures: torch.Tensor) -> torch.Tensor:
    """The central square, where a single thing is: ``(N, 3, side, side)`` of the shorter side."""
    height, width = pictures.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pictures[..., top : top + side, left : left + side]


def _composed(judge: Classifier, pictures: torch.Tensor, asked: Sequence[Question]) -> dict[str, float]:
    """Look for each thing in the middle of its half, and for the colour along the picture's edge.

    ``pictures`` are squares, ``(N, 3, side, side)``.
    """
    shown = list(zip(pictures, asked, strict=True))
    ranks = []
    for place in (0, 1):
        halves = torch.stack([_half(picture, place, question.above) for picture, question in shown])
        ranks.append(ranks_of(judge, halves, [question.concepts[place] for question in asked]))
    first, second = ranks
    right = [_background(picture) == question.background for picture, question in shown]
    return {
        "each_top1": float(np.mean([*(first < 1), *(second < 1)])),
        "each_top5": float(np.mean([*(first < 5), *(second < 5)])),
        "both_top1": float(np.mean((first < 1) & (second < 1))),
        "both_top5": float(np.mean((first < 5) & (second < 5))),
        "background": mean(right),
        "of": len(asked),
    }


def _half(picture: torch.Tensor, place: int, above: bool) -> torch.Tensor:
    """The central square of the left or right half, or, if ``above``, upper or lower: ``(3, side / 2, side / 2)``."""
    side = picture.shape[-1]
    along, across = slice(place * side // 2, (place + 1) * side // 2), slice(side // 4, side - side // 4)
    return picture[:, along, across] if above else picture[:, across, along]


def _background(picture: torch.Tensor) -> str:
    """The name of the colour nearest to most of the pixels along the picture's four edges."""
    turned = picture.mT
    edge = torch.cat([seen.flatten(1) for side in (picture, turned) for seen in (side[:, :3], side[:, -3:])], dim=1)
    seen = (edge.median(dim=1).values.cpu().numpy() + 1) * 127.5
    return min(BACKGROUNDS, key=lambda name: float(np.square(seen - np.array(BACKGROUNDS[name])).sum()))


def _changes(pipe: FluxPipeline, asked: Sequence[Question], calling: Calling, steps: int) -> dict[str, Any]:
    """The relative changes between steps that each stage's check measures: lowest, median, highest."""
    seen: dict[str, list[float]] = {"structure": [], "detail": []}
    with h2gen.h2_cache(pipe, tau1=_NEVER, tau2=_NEVER) as trace:
        for question in asked:
            _make(pipe, [question], replace(calling, steps=steps))
    for record in trace.steps:
        for name, values in seen.items():
            change = getattr(record, name).change
            if change is not None:
                values.append(change)
    return {name: {"min": min(v), "median": median(v), "max": max(v)} for name, v in seen.items()}
