"""Embeds images in the report as data URIs, scaled down only as far as the page's size requires."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field

from PIL import Image

SIDES = (768, 640, 512, 384, 256)
"""Longest side in pixels. The first is enough for any screen; the others are for pages with very many images."""
PIXELS = 180_000_000
"""All images of a page together, at most: about 45 MB of WebP."""
LOSSLESS = 256 * 256
"""Images with at most this many pixels are embedded losslessly."""


def largest_side(sizes: Iterable[tuple[int, int]]) -> int:
    """The longest side with which images of these sizes all fit in a page."""
    sizes = list(sizes)
    for side in SIDES:
        if sum(width * height for width, height in (fitted(size, side) for size in sizes)) <= PIXELS:
            return side
    return SIDES[-1]


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """A size scaled down, never up, so that no side is longer than ``side``."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@dataclass
class Embedded:
    """The images of a page as data URIs, without duplicates."""

    side: int
    uris: list[str] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    def add(self, picture: Image.Image) -> int:
        """Embed an image.

        Returns:
            Its index in ``uris``.
        """
        picture = picture.convert("RGB")
        known = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()
        if known not in self._known:
            self._known[known] = len(self.uris)
            self.uris.append(self._uri(picture))
        return self._known[known]

    def _uri(self, picture: Image.Image) -> str:
        size = fitted(picture.size, self.side)
        buffer = io.BytesIO()
        if picture.width * picture.height <= LOSSLESS and size == picture.size:
            picture.save(buffer, "WEBP", lossless=True)
        else:
            picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=92)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
