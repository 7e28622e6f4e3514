"""The style that the LoRA is taught: blueprints, pale lines on blue paper."""

from __future__ import annotations

import torch
from torch.nn import functional as F

PAPER, INK = (0.08, 0.25, 0.60), (0.95, 0.97, 1.0)
"""RGB, 0 to 1."""
_SMOOTH = 1.0
"""Standard deviation, in pixels, of the blur before edges are looked for: without it, shading makes lines too."""
_GAIN, _FAINT = 8.0, 0.15
"""An edge of strength ``e`` becomes a line of opacity ``_GAIN * e - _FAINT``, clipped to 0 and 1."""
_NEAR = 40 / 255
"""Distance from the paper's colour within which a pixel is paper, in each channel."""


def blueprint(pictures: torch.Tensor) -> torch.Tensor:
    """Turn pictures into blueprints; shapes and ranges stay: ``(B, 3, height, width)``, -1 to 1."""
    lines = (_GAIN * _edges((pictures + 1) / 2) - _FAINT).clamp(0, 1)
    paper, ink = (pictures.new_tensor(colour).view(1, 3, 1, 1) for colour in (PAPER, INK))
    return torch.lerp(paper, ink, lines) * 2 - 1


def likeness(pictures: torch.Tensor) -> dict[str, float]:
    """How much pictures look like blueprints, whatever they show.

    Returns:
        ``paper``: the share of pixels that have the paper's colour. ``off``: the mean distance of a pixel's colour from
        the nearest mixture of paper and ink, of 255.
    """
    colours = (pictures.movedim(1, -1).reshape(-1, 3) + 1) / 2
    paper, ink = colours.new_tensor(PAPER), colours.new_tensor(INK)
    along = ((colours - paper) @ (ink - paper) / (ink - paper).square().sum()).clamp(0, 1)
    nearest = paper + along[:, None] * (ink - paper)
    return {
        "paper": ((colours - paper).abs().amax(1) < _NEAR).float().mean().item(),
        "off": 255 * (colours - nearest).norm(dim=1).mean().item(),
    }


def _edges(pictures: torch.Tensor) -> torch.Tensor:
    """The length of the colour's gradient at each pixel, ``(B, 1, height, width)``."""
    smooth = F.pad(_blurred(pictures), (1,) * 4, mode="replicate")
    across = (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2
    down = (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2
    return (across.square() + down.square()).sum(1, keepdim=True).sqrt()


def _blurred(pictures: torch.Tensor) -> torch.Tensor:
    reach = round(3 * _SMOOTH)
    weights = torch.exp(-torch.arange(-reach, reach + 1, device=pictures.device).square() / (2 * _SMOOTH**2))
    weights = (weights / weights.sum()).expand(pictures.shape[1], 1, 1, -1)
    padded = F.pad(pictures, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, weights, groups=len(weights))
    return F.conv2d(rows, weights.mT, groups=len(weights))
