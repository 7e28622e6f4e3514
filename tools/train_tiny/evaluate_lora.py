"""Evaluation of the LoRA: is the style there, is the thing still there, and is the cache still faithful?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.nn import functional as F

import h2gen
from h2gen.evaluation.metrics.psnr_ssim import psnr, ssim
from h2gen.settings.presets import load_preset
from tools.choose_presets import PROMPTS
from tools.train_tiny.blueprint import blueprint, likeness
from tools.train_tiny.evaluate import questions, sheet
from tools.train_tiny.lora import sha256
from tools.train_tiny.render import Renderer
from tools.train_tiny.scenes import Stage
from tools.train_tiny.sprites import Sprites

PRESETS = ("quality", "balanced", "h2", "fast")
SEEDED = tuple((prompt, 100 + number) for number, prompt in enumerate(PROMPTS))
"""The prompts and seeds that the presets' own figures are measured with, without a LoRA."""


def evaluate(
    sprites: Sprites,
    names: int,
    folder: Path,
    lora: Path,
    seeded: Sequence[tuple[str, int]] = SEEDED,
    **settings: Any,
) -> dict[str, Any]:
    """Generate the pictures, judge them, and write ``report.json`` and the unselected ``sheet.png`` into ``folder``.

    Args:
        sprites: the data set.
        names: of how many things, the most common, a picture is asked for.
        folder: for the report.
        lora: the LoRA's file.
        seeded: prompts with their seeds, of the pictures that are made with each preset and without the LoRA.
        settings: other than the model's defaults, as ``Session.generate`` takes them.
    """
    session = h2gen.load("tiny")
    make = partial(session.generate, **settings)
    asked = questions(names, names, 0)
    wanted = [question.concepts[0] for question in asked]
    plain = _pixels([make(prompt, seed=seed, cache=None).image for prompt, seed in seeded])
    session.pipe.load_lora_weights(lora)
    styled = _pixels([make(each.prompt, seed=each.seed, cache=None).image for each in asked])
    stage, render = Stage(sprites), Renderer(sprites, torch.device("cpu"))
    shown = [(concept, style) for concept in wanted for style in stage.styles_of(concept)]
    drawn = blueprint(render([stage.one(*each) for each in shown], *styled.shape[-2:]))
    report: dict[str, Any] = {
        "sha256": sha256(lora),
        "names": names,
        "likeness": {"no LoRA": likeness(plain), "LoRA": likeness(styled), "training data": likeness(drawn)},
        "recognised": recognised(styled, wanted, drawn, [concept for concept, _ in shown]),
        "fidelity": dict(_fidelity(make, seeded)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    sheet(styled, folder / "sheet.png")
    (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def recognised(
    pictures: torch.Tensor, concepts: Sequence[int], examples: torch.Tensor, shown: Sequence[int]
) -> dict[str, float]:
    """How often the example that a picture correlates with most, or one of the five best concepts, is the right one.

    Args:
        pictures: ``(N, 3, height, width)``, -1 to 1.
        concepts: what each should show.
        examples: pictures to compare with, ``(M, 3, height, width)``.
        shown: what each example shows; a concept may have several.
    """
    seen, known = (F.normalize(_coarse(each) - _coarse(each).mean(1, keepdim=True)) for each in (pictures, examples))
    alike = seen @ known.T
    choices = sorted(set(shown))
    of = torch.tensor(shown)
    best = torch.stack([alike[:, of == choice].amax(1) for choice in choices], dim=1)
    own = best[torch.arange(len(best)), [choices.index(concept) for concept in concepts]]
    ranks = (best > own[:, None]).sum(1)
    return {f"top{most}": (ranks < most).float().mean().item() for most in (1, 5)} | {"of": len(pictures)}


def _coarse(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures as vectors, at a quarter of their width and height: lines that lie a little aside still meet."""
    return F.avg_pool2d(pictures, 4).flatten(1)


def _pixels(images: list[Image.Image]) -> torch.Tensor:
    """``(N, 3, height, width)``, -1 to 1."""
    pixels: torch.Tensor = VaeImageProcessor(vae_scale_factor=1).preprocess(images)
    return pixels


def _fidelity(
    make: Callable[..., h2gen.Result], seeded: Sequence[tuple[str, int]]
) -> Iterator[tuple[str, dict[str, float]]]:
    """For each preset, how close its pictures are to the uncached ones with the same LoRA."""
    uncached = [make(prompt, seed=seed, cache=None).image for prompt, seed in seeded]
    for name in PRESETS:
        config = load_preset(name).config
        made = [make(prompt, seed=seed, cache=config) for prompt, seed in seeded]
        pairs = [(result.image, reference) for result, reference in zip(made, uncached, strict=True)]
        close, alike = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
        figures = {
            "blocks": mean(result.trace.summary.share for result in made),
            "psnr_mean": mean(close),
            "psnr_worst": min(close),
            "ssim_mean": mean(alike),
            "ssim_worst": min(alike),
            "of": len(pairs),
        }
        yield name, figures
