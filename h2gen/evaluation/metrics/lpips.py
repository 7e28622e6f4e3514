"""LPIPS: the distance of two images in the features of AlexNet. Needs torchvision and its weights."""

from __future__ import annotations

import sys
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import interpolate

from h2gen.errors import ModelError
from h2gen.evaluation.metrics.psnr_ssim import pair
from h2gen.models.translate_errors import brief

SMALLEST = 64
"""Minimum pixels of the shorter side: the patch size that LPIPS was fitted to. AlexNet itself needs 31."""


def missing(*, download: bool) -> str | None:
    """What is missing for LPIPS and how to get it; None if nothing is.

    Args:
        download: fetch AlexNet's weights if they are missing.
    """
    if find_spec("torchvision") is None:
        return "it needs torchvision; run: pip install torchvision."
    try:
        from torchvision.models import AlexNet_Weights
    except Exception as error:  # noqa: BLE001 - a torchvision built for another torch fails in many ways
        return (
            f"torchvision cannot be imported ({brief(error)}); install the version built for torch {torch.__version__}."
        )
    weights = AlexNet_Weights.DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    if file.is_file():
        return None
    if not download:
        return f"its weights, {file.name}, are not on this machine; h2gen compare --metrics lpips downloads them."
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return (
            f"its weights, {file.name}, are not on this machine; go online to download them; HF_HUB_OFFLINE must "
            "not be set."
        )
    try:
        weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except Exception as error:  # noqa: BLE001 - any error of the network or the disk
        return f"its weights cannot be downloaded ({brief(error)}); try again, or put {weights.url} into {file.parent}."
    return None


class Lpips:
    """Needs what ``missing`` looks for. The model is loaded at the first image."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device

    def distance(self, image: Image.Image, reference: Image.Image) -> float:
        """LPIPS: 0 for identical images, rarely above 1.

        Images whose shorter side is below 64 pixels are enlarged to it first, because AlexNet sees too little of
        smaller ones. Their distances are comparable only with each other.

        Raises:
            SettingError: the sizes differ.
            ModelError: the weights are damaged.
        """
        first, second = pair(image, reference)
        if torch.equal(first, second):
            return 0.0
        shorter = min(first.shape[-2:])
        if shorter < SMALLEST:
            size = [-(-side * SMALLEST // shorter) for side in first.shape[-2:]]
            first, second = (interpolate(picture, size=size, mode="bilinear") for picture in (first, second))
        with torch.no_grad():
            value = self._model(first.float().to(self._device), second.float().to(self._device))
        self._model.reset()  # otherwise it keeps every value for a mean
        return float(value)

    @cached_property
    def _model(self) -> Any:
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        try:
            return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(self._device)
        except Exception as error:
            raise ModelError(f"LPIPS cannot be loaded: {brief(error)}; download AlexNet's weights again.") from error
