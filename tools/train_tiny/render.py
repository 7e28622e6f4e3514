"""Renders scenes as pictures, in batches, on the training device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.nn import functional as F

from tools.train_tiny.colours import TINTS
from tools.train_tiny.scenes import Scene, Thing
from tools.train_tiny.sprites import Sprites

_LEVELS = 4
"""Sizes of each sprite, halved from one to the next, so that small sprites are averaged, not subsampled."""


class Renderer:
    """Holds the sprites on a device, ``(N, 4, side, side)`` uint8 for each of ``_LEVELS`` sides."""

    def __init__(self, sprites: Sprites, device: torch.device) -> None:
        self.device = device
        pictures = torch.from_numpy(sprites.pictures).permute(0, 3, 1, 2).to(device)
        self._levels = [pictures.contiguous()]
        while len(self._levels) < _LEVELS:
            halves = [_premultiplied(part) for part in self._levels[-1].split(256)]
            self._levels.append(torch.cat([_bytes(F.avg_pool2d(part, 2)) for part in halves]))

    @torch.no_grad()
    def __call__(self, scenes: Sequence[Scene], height: int, width: int) -> torch.Tensor:
        """Draw scenes.

        Returns:
            ``(B, 3, height, width)`` float32, -1 to 1.
        """
        shades = torch.tensor([scene.background for scene in scenes], dtype=torch.float32, device=self.device)
        canvas = shades[:, :, None, None].expand(-1, -1, height, width).contiguous()
        for slot in range(max(len(scene.things) for scene in scenes)):
            rows = [i for i, scene in enumerate(scenes) if len(scene.things) > slot]
            drawn = self._draw([scenes[i].things[slot] for i in rows], height, width)
            colour, alpha = drawn[:, :3], drawn[:, 3:]
            canvas[rows] = colour + canvas[rows] * (1 - alpha)
        return canvas * 2 - 1

    def _draw(self, things: Sequence[Thing], height: int, width: int) -> torch.Tensor:
        shorter = min(height, width)
        out = torch.empty(len(things), 4, height, width, device=self.device)
        sizes = np.array([thing.size for thing in things])
        fitting = np.clip(np.floor(np.log2(self._levels[0].shape[-1] / (sizes * shorter)) + 0.25), 0, _LEVELS - 1)
        for level in sorted(set(fitting.tolist())):
            rows = [i for i, found in enumerate(fitting) if found == level]
            chosen = [things[i] for i in rows]
            numbers = torch.tensor([thing.sprite for thing in chosen], device=self.device)
            sprites = _premultiplied(self._levels[int(level)][numbers])
            sprites = _tinted(sprites, [thing.tint for thing in chosen])
            out[rows] = F.grid_sample(
                sprites, self._grid(chosen, height, width), padding_mode="zeros", align_corners=False
            )
        return out

    def _grid(self, things: Sequence[Thing], height: int, width: int) -> torch.Tensor:
        """Sampling coordinates in the sprite of each pixel of the picture."""
        shorter = min(height, width)
        places = torch.tensor(
            [(thing.x, thing.y, thing.size) for thing in things],
            device=self.device,
        )
        x = (torch.arange(width, device=self.device) + 0.5 - width / 2) / shorter
        y = (torch.arange(height, device=self.device) + 0.5 - height / 2) / shorter
        u = (x[None] - places[:, 0:1]) / places[:, 2:3] * 2
        v = (y[None] - places[:, 1:2]) / places[:, 2:3] * 2
        return torch.stack([u[:, None].expand(-1, height, -1), v[:, :, None].expand(-1, -1, width)], dim=-1)


def to_images(pictures: torch.Tensor) -> list[Image.Image]:
    """Convert ``(B, 3, height, width)``, -1 to 1, to images, as diffusers' pipelines do."""
    images: list[Image.Image] = VaeImageProcessor().postprocess(pictures, "pil")
    return images


def _premultiplied(pictures: torch.Tensor) -> torch.Tensor:
    """RGBA bytes to premultiplied colours, 0 to 1, which can be averaged."""
    values = pictures.float() / 255
    return torch.cat([values[:, :3] * values[:, 3:], values[:, 3:]], dim=1)


def _bytes(premultiplied: torch.Tensor) -> torch.Tensor:
    alpha = premultiplied[:, 3:]
    colour = premultiplied[:, :3] / alpha.clamp_min(1e-6)
    return (torch.cat([colour, alpha], dim=1) * 255).round().clamp(0, 255).to(torch.uint8)


def _tinted(sprites: torch.Tensor, tints: Sequence[str | None]) -> torch.Tensor:
    """Tint some sprites; lightness and their white, gray and black parts stay."""
    rows = [i for i, tint in enumerate(tints) if tint is not None]
    if not rows:
        return sprites
    tint = torch.tensor([TINTS[str(tints[i])] for i in rows], device=sprites.device)[:, :, None, None] / 255
    alpha = sprites[rows, 3:]
    colour = sprites[rows, :3] / alpha.clamp_min(1e-6)
    brightest, darkest = colour.amax(1, keepdim=True), colour.amin(1, keepdim=True)
    light = (brightest + darkest) / 2
    shaded = torch.where(light < 0.5, tint * light * 2, tint + (1 - tint) * (light * 2 - 1))
    saturation = ((brightest - darkest) * 3).clamp(0, 1)
    sprites[rows, :3] = (shaded * saturation + colour * (1 - saturation)) * alpha
    return sprites
