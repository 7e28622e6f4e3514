"""The contact sheet: images side by side with labels and figures, and a map of where two of them differ."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFont

from h2gen.wording import printable

FACTORS = (1, 2, 4, 8, 16, 32)
"""Amplifications of a difference map; the largest that clips hardly any pixel is used."""

_READABLE = 384
"""Pixels: narrower images are enlarged by a whole factor to at least this width."""
_GROUND, _INK, _MUTED = (250, 249, 247), (34, 38, 43), (104, 110, 119)
_RAMP = ((0, 0, 0), (0, 62, 70), (0, 108, 110), (26, 158, 146), (134, 208, 186), (240, 255, 246))
"""From no difference to the largest: one hue in equal steps of lightness."""
_GAP = 16


@dataclass(frozen=True)
class Panel:
    """An image with its label and lines of figures."""

    picture: Image.Image
    label: str
    figures: Sequence[str] = ()


def difference_map(reference: Image.Image, other: Image.Image, factor: int | None = None) -> tuple[Image.Image, int]:
    """Where two images differ: for each pixel the largest difference of its three channels, amplified.

    Args:
        reference, other: images of the same size.
        factor: the amplification; None takes the largest of ``FACTORS`` that clips at most 0.5 % of the pixels.

    Returns:
        The map, black where nothing differs, and the factor.

    Raises:
        ValueError: the sizes differ.
    """
    difference = _difference(reference, other)
    if factor is None:
        factor = amplification([(reference, other)])
    stops = np.linspace(0, 255, len(_RAMP))
    ramp = np.stack([np.interp(np.arange(256), stops, channel) for channel in np.asarray(_RAMP).T], axis=1)
    colours = ramp.round().astype(np.uint8)[np.minimum(factor * np.arange(256), 255)]
    return Image.fromarray(colours[difference]), factor


def amplification(pairs: Iterable[tuple[Image.Image, Image.Image]]) -> int:
    """The largest of ``FACTORS`` that clips at most 0.5 % of the pixels of all difference maps together.

    Args:
        pairs: the images that are compared, such as the frames of two videos; two at a time are in memory.

    Raises:
        ValueError: the sizes of a pair differ.
    """
    counts = sum(np.bincount(_difference(*pair).ravel(), minlength=256) for pair in pairs)
    ranks = np.cumsum(counts)
    place = 0.995 * (ranks[-1] - 1)
    around = np.searchsorted(ranks, [math.floor(place), math.ceil(place)], side="right")
    large = float(np.quantile(around, place % 1))  # of all pixels, as if they were in one array
    return max(candidate for candidate in FACTORS if candidate == 1 or candidate * large <= 255)


def _difference(reference: Image.Image, other: Image.Image) -> npt.NDArray[np.uint8]:
    """For each pixel the largest difference of its three channels, ``(H, W)``."""
    if reference.size != other.size:
        raise ValueError(f"The pictures have sizes {reference.size} and {other.size}; they must be equal.")
    difference = ImageChops.difference(reference.convert("RGB"), other.convert("RGB"))
    largest: npt.NDArray[np.uint8] = np.asarray(difference).max(axis=2)
    return largest


def difference_panel(reference: Image.Image, other: Image.Image, factor: int | None = None) -> Panel:
    """The difference of two images as a panel of ``contact_sheet``; its label states the factor."""
    picture, factor = difference_map(reference, other, factor)
    if picture.getextrema() == ((0, 0),) * 3:
        return Panel(picture, "No difference", ("identical",))
    label = f"Difference, amplified {factor} times" if factor > 1 else "Difference, not amplified"
    return Panel(picture, label, ("black: no difference; lighter: larger",))


def contact_sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Rows of images, all of the same size, each with its label and figures beneath; rows may differ in length.

    Small images are enlarged by a whole factor without interpolation, so that every pixel stays visible as it is. A
    label too wide for its image is cut off with dots.

    Raises:
        ValueError: there are no images, or their sizes differ.
    """
    sizes = {panel.picture.size for row in rows for panel in row}
    if len(sizes) != 1:
        raise ValueError(f"All pictures must have the same size; these have {sorted(sizes)}.")
    width, height = sizes.pop()
    factor = max(1, -(-_READABLE // width))
    wide, high = factor * width, factor * height
    size = min(28, max(17, wide // 26))
    large, small = ImageFont.load_default(size), ImageFont.load_default(round(0.84 * size))
    line = round(1.45 * size)
    below = [line * (1 + max((len(panel.figures) for panel in row), default=0)) + round(0.5 * size) for row in rows]
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB",
        (columns * (wide + _GAP) + _GAP, _GAP + sum(high + room + _GAP for room in below)),
        _GROUND,
    )
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, room in zip(rows, below, strict=True):
        for column, panel in enumerate(row):
            left = _GAP + column * (wide + _GAP)
            picture = panel.picture.convert("RGB")
            sheet.paste(picture if factor == 1 else picture.resize((wide, high), Image.Resampling.NEAREST), (left, top))
            y = top + high + round(0.5 * size)
            draw.text((left, y), _fitting(panel.label, large, wide), _INK, large)
            for index, words in enumerate(panel.figures):
                at = (left, y + round(1.5 * size) + index * line)
                draw.text(at, _fitting(words, small, wide), _MUTED, small)
        top += high + room + _GAP
    return sheet


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text in characters that Pillow's built-in font has, cut to ``width`` pixels."""
    text = unicodedata.normalize("NFKD", printable(text).replace("×", "x").replace("\u2013", "-"))
    text = "".join(char for char in text if not unicodedata.combining(char)).encode("ascii", "replace").decode()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
