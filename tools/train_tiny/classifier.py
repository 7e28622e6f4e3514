"""The judge of pictures: a small classifier of concepts, trained only on the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tools.train_tiny.concepts import concepts
from tools.train_tiny.render import Renderer
from tools.train_tiny.runs import Log, Run, set_rate
from tools.train_tiny.scenes import Scene, Stage
from tools.train_tiny.sprites import STYLES, Sprites

SIDE = 64
"""Side of its input, in pixels."""
_BATCH, _RATE = 64, 1e-3


class Classifier(nn.Module):
    """Logits over all concepts."""

    def __init__(self, concepts: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for before, width in pairwise(widths):
            layers += [_layer(before, width, stride=2), _layer(width, width)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], concepts)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """``(B, 3, SIDE, SIDE)``, -1 to 1, to ``(B, concepts)``."""
        logits: torch.Tensor = self.head(self.features(pictures).mean((2, 3)))
        return logits


def _layer(before: int, width: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


def train(
    sprites: Sprites, folder: Path, minutes: float, device: torch.device, styles: Sequence[str] = STYLES
) -> Classifier:
    """Train the classifier on some of the styles, or resume; load it if its time budget is spent."""
    torch.manual_seed(0)
    stage, render = Stage(sprites), Renderer(sprites, device)
    model = Classifier(len(stage.concepts)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def restore(saved: dict[str, Any]) -> None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    run, log = Run(folder, minutes, state, restore), Log(folder)
    rng = np.random.default_rng(run.progress.steps)
    model.train()
    for progress in run:
        set_rate(optimizer, progress.rate)
        scenes, shown = zip(*(_example(stage, styles, rng) for _ in range(_BATCH)), strict=True)
        pictures = _spoilt(render(scenes, SIDE, SIDE))
        loss = F.cross_entropy(model(pictures), torch.tensor(shown, device=device), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.count(_BATCH)
        log.tell(run.progress, {"loss": loss})
    log.write(run.progress)
    return model.eval()


def load(folder: Path, device: torch.device) -> Classifier:
    """Load what ``train`` saved."""
    saved = torch.load(folder / "snapshot.pt", map_location=device, weights_only=True)["state"]["model"]
    model = Classifier(len(concepts())).to(device)
    model.load_state_dict(saved)
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, sprites: Sprites, device: torch.device, styles: Sequence[str]) -> dict[str, float]:
    """Top-1 and top-5 accuracy on all pictures of some styles."""
    stage, render = Stage(sprites), Renderer(sprites, device)
    index = [sprite for sprite in sprites.index if sprite.style in styles]
    pictures = render([stage.one(sprite.concept, sprite.style) for sprite in index], SIDE, SIDE)
    return top_k_accuracy(model, pictures, [sprite.concept for sprite in index])


def top_k_accuracy(model: Classifier, pictures: torch.Tensor, concepts: Sequence[int]) -> dict[str, float]:
    """Top-1 and top-5 accuracy."""
    ranks = ranks_of(model, pictures, concepts)
    return {"top1": float(np.mean(ranks < 1)), "top5": float(np.mean(ranks < 5)), "of": len(concepts)}


@torch.no_grad()
def ranks_of(model: Classifier, pictures: torch.Tensor, concepts: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rank of each picture's concept among the guesses, from 0. Pictures of any size, -1 to 1."""
    seen = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
    logits = torch.cat([model(part) for part in seen.split(256)])
    own = logits.gather(1, torch.tensor(concepts, device=logits.device)[:, None])
    return np.asarray((logits > own).sum(1).cpu())


def _example(stage: Stage, styles: Sequence[str], rng: np.random.Generator) -> tuple[Scene, int]:
    """A thing at any place and size on any background; half of them on white."""
    concept = int(rng.integers(len(stage.concepts)))
    there = [style for style in styles if style in stage.styles_of(concept)]
    if not there:
        return _example(stage, styles, rng)
    scene = stage.one(concept, there[rng.integers(len(there))])
    red, green, blue = (1.0, 1.0, 1.0) if rng.random() < 0.5 else rng.uniform(0, 1, 3).tolist()
    x, y = rng.uniform(-0.08, 0.08, 2)
    thing = replace(scene.things[0], x=float(x), y=float(y), size=float(rng.uniform(0.6, 1.05)))
    return replace(scene, things=(thing,), background=(red, green, blue)), concept


def _spoilt(pictures: torch.Tensor) -> torch.Tensor:
    """Blur each picture and add noise, by random amounts, like pictures from a small model."""
    degree = torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    blurred = F.avg_pool2d(pictures, 5, 1, 2, count_include_pad=False)
    noise = 0.15 * torch.rand_like(degree) * torch.randn_like(pictures)
    return (torch.lerp(pictures, blurred, degree) + noise).clamp(-1, 1)
