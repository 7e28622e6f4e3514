"""LPIPS, the distance of two pictures in the features of AlexNet; it needs torchvision and its weights."""

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
from h2gen.evaluation.fidelity import pair
from h2gen.models.translate_errors import brief

SMALLEST = 64
"""Pixels of the shorter side: the size of the patches that LPIPS was fitted to. AlexNet itself needs 31."""


def lacking(*, download: bool) -> str | None:
    """What LPIPS needs and does not have here, and how to get it; None where it has all.

    Args:
        download: fetch AlexNet's weights where they are not there.
    """
    if find_spec("torchvision") is None:
        return 'it needs torchvision: pip install "h2gen[lpips]".'
    try:
        from torchvision.models import AlexNet_Weights
    except Exception as error:  # noqa: BLE001 - a torchvision of another torch fails in its own ways
        return (
            f"torchvision cannot be imported ({brief(error)}); install the one that was built for torch "
            f"{torch.__version__}."
        )
    weights = AlexNet_Weights.DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    if file.is_file():
        return None
    if not download:
        return f"its weights, {file.name}, are not on this machine; they are fetched once where lpips is named."
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return (
            f"its weights, {file.name}, are not on this machine; connect and unset HF_HUB_OFFLINE to fetch them once."
        )
    try:
        weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except Exception as error:  # noqa: BLE001 - whatever the network and the disk have to say
        return f"its weights cannot be fetched ({brief(error)}); try again, or put {weights.url} into {file.parent}."
    return None


class Lpips:
    """Needs what ``lacking`` looks for. The model is loaded at the first picture."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device

    def distance(self, image: Image.Image, reference: Image.Image) -> float:
        """0 for identical pictures, and seldom above 1.

        Pictures whose shorter side is below 64 pixels are enlarged to it first, since AlexNet would see next to
        nothing of them; their distances can be compared with each other, and with nothing else.

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
        self._model.reset()  # it would keep every value for a mean over all
        return float(value)

    @cached_property
    def _model(self) -> Any:
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        try:
            return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(self._device)
        except Exception as error:
            raise ModelError(f"LPIPS cannot be loaded: {brief(error)}; fetch AlexNet's weights again.") from error
