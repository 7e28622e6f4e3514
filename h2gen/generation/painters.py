"""From estimated latents to small pictures: by a linear map, fitted for any autoencoder, or by a tiny autoencoder.

The linear map is one convolution of 3 x 3 latents, whose result is 2 x 2 pixels for each latent. It is a least-squares
fit over synthetic pictures that the model's own autoencoder encodes when the first preview is asked for, and is kept
as long as the autoencoder. Pictures of overlapping shapes (dead leaves) have edges and areas as photographs do.

Source: the model of dead leaves as in Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional

Painter = Callable[[torch.Tensor], torch.Tensor]
"""From latents ``(1, C, H, W)``, as an autoencoder decodes them, to pixels ``(h, w, 3)`` in uint8, on their device."""

_PICTURES, _SIDE, _SHAPES = 4, 256, 40
_GREY = 0.3
"""The part of the shapes that are black, white or grey."""
_RIDGE = 1e-3
"""Keeps the fit from following noise; relative to the latents' mean square."""
_LONGEST = 512
"""Pixels of a side of a tiny autoencoder's preview."""

_fitted: WeakKeyDictionary[torch.nn.Module, LinearPainter] = WeakKeyDictionary()


class LinearPainter:
    """Paints 2 x 2 pixels for each latent.

    Args:
        weights: ``(12, C, 3, 3)``.
        bias: ``(12,)``.
    """

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor) -> None:
        self._weights, self._bias = weights, bias

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        self._weights, self._bias = self._weights.to(latents), self._bias.to(latents)
        around = functional.pad(latents, (1, 1, 1, 1), mode="replicate")
        return _pixels(functional.pixel_shuffle(functional.conv2d(around, self._weights, self._bias), 2))


class TinyPainter:
    """Paints with a tiny autoencoder, at most 512 pixels wide and high.

    Args:
        autoencoder: diffusers' ``AutoencoderTiny``, on the device of the latents.
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        decoded = self.autoencoder.decode(latents.to(self.autoencoder.dtype)).sample.float()
        shrink = -(-max(decoded.shape[-2:]) // _LONGEST)
        return _pixels(functional.avg_pool2d(decoded, shrink, ceil_mode=True) if shrink > 1 else decoded)


def linear_painter(autoencoder: Any, device: torch.device) -> LinearPainter:
    """The linear map of an autoencoder, fitted the first time.

    Args:
        autoencoder: one of diffusers' that encodes RGB pictures.
        device: where it encodes.
    """
    if autoencoder not in _fitted:
        before = autoencoder.device
        _fitted[autoencoder] = fit(autoencoder, device)
        if before.type == "cpu" != autoencoder.device.type:  # offloading had fetched it
            autoencoder.to(before)
    return _fitted[autoencoder]


@torch.no_grad()
def fit(autoencoder: Any, device: torch.device) -> LinearPainter:
    """Fit the linear map of an autoencoder; see the module."""
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    videos = next(autoencoder.parameters()).ndim == 5  # it also encodes videos, of which a picture is a single frame
    for picture in dead_leaves():
        pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 127.5 - 1
        given = pixels.to(device, autoencoder.dtype)
        encoded = autoencoder.encode(given[:, :, None] if videos else given)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        latents = (latents[:, :, 0] if videos else latents).cpu().double()
        rows, columns = latents.shape[-2:]
        small = functional.adaptive_avg_pool2d(pixels.double(), (2 * rows, 2 * columns))
        around = functional.unfold(functional.pad(latents, (1, 1, 1, 1), mode="replicate"), 3)[0].T
        inputs.append(torch.cat([around, torch.ones(len(around), 1, dtype=torch.float64)], dim=1))
        outputs.append(functional.pixel_unshuffle(small, 2)[0].flatten(1).T)
    x, y = torch.cat(inputs), torch.cat(outputs)
    ridge = torch.full((x.shape[1],), _RIDGE * float(x[:, :-1].square().sum(0).mean()), dtype=torch.float64)
    ridge[-1] = 0  # of the bias
    found = torch.linalg.solve(x.T @ x + torch.diag(ridge), x.T @ y).float()
    return LinearPainter(found[:-1].T.reshape(12, -1, 3, 3).contiguous(), found[-1].contiguous())


def dead_leaves() -> Iterator[Image.Image]:
    """Pictures of overlapping shapes of many sizes and colours; the same ones each time."""
    random = np.random.default_rng(0)
    for ground in ("white", "black", "grey", "white")[:_PICTURES]:
        picture = Image.new("RGB", (_SIDE, _SIDE), ground)
        draw = ImageDraw.Draw(picture)
        for _ in range(_SHAPES):
            radius = int(min(_SIDE / 3, 4 * random.pareto(1.0) + 4))
            x, y = random.integers(0, _SIDE, 2)
            colour = random.integers(0, 256, 3)
            if random.random() < _GREY:
                colour[:] = random.choice([0, 255, colour[0]])
            shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
            shape((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour.tolist()))
        yield picture


def _pixels(picture: torch.Tensor) -> torch.Tensor:
    """``(1, 3, h, w)`` in -1 to 1 as ``(h, w, 3)`` in uint8."""
    return picture[0].permute(1, 2, 0).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).contiguous()
