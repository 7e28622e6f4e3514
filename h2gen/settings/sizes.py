"""Sizes of pictures: ``1024x768``, ``1024`` for a square, or a ratio such as ``16:9``."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from h2gen.errors import SettingError
from h2gen.settings.table import LARGEST_SIDE
from h2gen.wording import shown

if TYPE_CHECKING:
    from h2gen.models.defaults import ModelDefaults


def parse_size(text: str, defaults: ModelDefaults, called: str = "size") -> tuple[int, int, str | None]:
    """Width and height from ``1024x768``, or from a ratio such as ``16:9`` with the area of the model's default.

    Args:
        text: either, or one number for both sides.
        defaults: of the model.
        called: what the caller calls it, for messages.

    Returns:
        Width, height, and a notice if the size had to be rounded to a multiple that the model needs.

    Raises:
        SettingError: the text is neither, or a side would be 0 or above ``LARGEST_SIDE``.
    """
    multiple = defaults.size_multiple
    pixels = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
    ratio = re.fullmatch(r"\s*(\d{1,5}(?:\.\d{1,5})?)\s*:\s*(\d{1,5}(?:\.\d{1,5})?)\s*", text)
    square = re.fullmatch(r"\s*(\d{1,9})\s*", text)
    if found := pixels or square:
        wide, high = int(found[1]), int(found[found.re.groups])
        width, height = (int(side / multiple + 0.5) * multiple for side in (wide, high))
        if not 0 < width <= LARGEST_SIDE or not 0 < height <= LARGEST_SIDE:
            raise SettingError(
                f"{called} is {shown(text)}; each side must be from {multiple} to {LARGEST_SIDE} pixels."
            )
        rounded = (width, height) != (wide, high)
        notice = f"{wide}x{high} is not a multiple of {multiple}: making {width}x{height}." if rounded else None
        return width, height, notice
    if ratio and float(ratio[1]) > 0 and float(ratio[2]) > 0:
        shape = float(ratio[1]) / float(ratio[2])
        area = defaults.width * defaults.height
        width = round(math.sqrt(area * shape) / multiple) * multiple
        height = round(math.sqrt(area / shape) / multiple) * multiple
        if 0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE:
            return width, height, None
    raise SettingError(
        f"{called} is {shown(text)}; give pixels such as 1024x768, a ratio such as 16:9, or one number for a square."
    )
