"""The edges of a picture by Canny's method, for models that follow them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2gen.errors import SettingError

if TYPE_CHECKING:
    from PIL import Image

LOW, HIGH = 50, 200
"""Thresholds of the gradient: those of FLUX.1 Canny's own program."""


def check_opencv() -> None:
    """Check that edges can be computed.

    Raises:
        SettingError: OpenCV is not installed.
    """
    from importlib.util import find_spec

    if find_spec("cv2") is None:
        raise SettingError(
            "--control canny:FILE needs OpenCV; install the extra 'canny' (pip install opencv-python-headless), or "
            "give a picture of edges as --control edges:FILE."
        )


def canny(image: Image.Image) -> Image.Image:
    """White edges on black, of the same size.

    Args:
        image: in RGB.

    Raises:
        SettingError: OpenCV is not installed.
    """
    check_opencv()
    import cv2
    import numpy as np
    from PIL import Image

    edges = cv2.Canny(np.ascontiguousarray(image), LOW, HIGH)
    return Image.fromarray(edges).convert("RGB")
