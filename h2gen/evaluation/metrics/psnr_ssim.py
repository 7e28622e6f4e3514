"""PSNR and SSIM of two images, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from h2gen.errors import SettingError

_MARGIN = 5
"""Pixels on each side of the centre of SSIM's Gaussian window with sigma 1.5."""

_TILE = 32
"""Pixels. On a whole 1024x1024 image torch's float64 convolution unfolds to 15 GB and takes ten times as long."""


def pair(image: Image.Image, reference: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images as float64 tensors from 0 to 1, of shape (1, 3, height, width).

    Raises:
        SettingError: the sizes differ.
    """
    if image.size != reference.size:
        sizes = ["{}x{}".format(*picture.size) for picture in (image, reference)]
        raise SettingError(
            f"A picture of {sizes[0]} cannot be compared with one of {sizes[1]}; give two of the same size."
        )
    return _pixels(image), _pixels(reference)


def psnr(image: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB; ``math.inf`` for identical images.

    Raises:
        SettingError: the sizes differ.
    """
    first, second = pair(image, reference)
    if torch.equal(first, second):
        return math.inf
    return float(peak_signal_noise_ratio(first, second, data_range=1.0))


def ssim(image: Image.Image, reference: Image.Image) -> float:
    """Structural similarity, at most 1; exactly 1 for identical images.

    As first published (Wang et al. 2004): a Gaussian window of sigma 1.5 and 11x11 pixels, averaged over the three
    channels and over all positions at which the window is inside the image. So no side may be shorter than the
    window.

    Raises:
        SettingError: the sizes differ, or a side is shorter than 11 pixels.
    """
    first, second = pair(image, reference)
    height, width = first.shape[-2:]
    window = 2 * _MARGIN + 1
    if min(height, width) < window:
        raise SettingError(
            f"SSIM needs pictures of at least {window}x{window} pixels, but these are {width}x{height}; make them "
            "larger, or leave ssim out of --metrics."
        )
    if torch.equal(first, second):
        return 1.0
    with _one_thread():
        return _mean_ssim(first, second)


def _mean_ssim(first: torch.Tensor, second: torch.Tensor) -> float:
    height, width = first.shape[-2:]
    total = 0.0
    for top in range(0, height - 2 * _MARGIN, _TILE):
        for left in range(0, width - 2 * _MARGIN, _TILE):
            rows, columns = (slice(start, start + _TILE + 2 * _MARGIN) for start in (top, left))
            # Not the mean that it returns: that includes positions where the window extends beyond the edge, onto
            # mirrored pixels.
            _, places = structural_similarity_index_measure(
                first[..., rows, columns], second[..., rows, columns], data_range=1.0, return_full_image=True
            )
            total += float(places[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].sum())
    return total / (3 * (height - 2 * _MARGIN) * (width - 2 * _MARGIN))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tiles are too small for several threads: on a busy machine these were six times as slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float64) / 255).permute(2, 0, 1)[None]
