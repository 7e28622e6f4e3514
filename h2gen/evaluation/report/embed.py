"""Embeds images and videos in the report as data URIs, scaled down only as far as the page's size requires.

A video is one image of all its frames, so that the page can show two of them frame by frame, at the same time.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from math import ceil, prod, sqrt

from PIL import Image

from h2gen.evaluation.videos import Shown, Video

SIDES = (768, 640, 512, 384, 256)
"""Longest side in pixels. The first is enough for any screen; the others are for pages with very many images."""
PIXELS = 180_000_000
"""All images of a page together, at most: about 45 MB of WebP."""
LOSSLESS = 256 * 256
"""Images with at most this many pixels are embedded losslessly."""
SHEET = 12_000_000
"""Pixels of a video, all frames together, at most: browsers keep four bytes of each."""
THUMBNAIL = 128
"""Longest side, in pixels, of the still picture that stands for a video in the list."""


def largest_side(sizes: Iterable[tuple[int, int]]) -> int:
    """The longest side with which images of these sizes all fit in a page."""
    sizes = list(sizes)
    for side in SIDES:
        if sum(width * height for width, height in (fitted(size, side) for size in sizes)) <= PIXELS:
            return side
    return SIDES[-1]


@dataclass(frozen=True)
class Sheet:
    """How the frames of videos are laid out: every ``every``-th frame, at ``size``, in rows of ``columns``."""

    size: tuple[int, int]
    every: int
    frames: int
    columns: int

    @staticmethod
    def of(size: tuple[int, int], frames: int, videos: int) -> Sheet:
        """The layout for a number of videos on a page: frames are scaled down as far as ``SIDES`` go, then left out.

        Args:
            size: of a frame.
            frames: of a video.
            videos: on the page.
        """
        most = min(SHEET, PIXELS // max(1, videos))
        side = next((side for side in SIDES if frames * prod(fitted(size, side)) <= most), SIDES[-1])
        small = fitted(size, side)
        every = max(1, ceil(frames * prod(small) / most))
        shown = ceil(frames / every)
        return Sheet(small, every, shown, ceil(sqrt(shown)))

    @property
    def whole(self) -> tuple[int, int]:
        """Width and height of all frames together, in pixels."""
        return self.columns * self.size[0], ceil(self.frames / self.columns) * self.size[1]

    def __call__(self, video: Video) -> Image.Image:
        """The image of all frames, row by row."""
        width, height = self.size
        image = Image.new("RGB", self.whole)
        for number, frame in enumerate(islice(video.pictures, None, None, self.every)):
            at = width * (number % self.columns), height * (number // self.columns)
            image.paste(frame if frame.size == self.size else frame.resize(self.size, Image.Resampling.LANCZOS), at)
        return image


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """A size scaled down, never up, so that no side is longer than ``side``."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@dataclass
class Embedded:
    """The images of a page as data URIs, without duplicates; ``sheet`` lays out its videos."""

    side: int
    sheet: Sheet | None = None
    uris: list[str] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    def add(self, image: Shown) -> int:
        """Embed an image or a video.

        Returns:
            Its index in ``uris``.
        """
        if isinstance(image, Video):
            assert self.sheet is not None
            sheet = self.sheet(image)
            return self._added(sheet, max(sheet.size))
        return self._added(image.convert("RGB"), self.side)

    def thumbnail(self, video: Video) -> int:
        """Embed a small picture of a video; returns its index."""
        return self._added(video.middle, THUMBNAIL)

    def _added(self, picture: Image.Image, side: int) -> int:
        known = hashlib.sha256(repr((picture.size, side)).encode() + picture.tobytes()).digest()
        if known not in self._known:
            self._known[known] = len(self.uris)
            self.uris.append(_uri(picture, side))
        return self._known[known]


def _uri(picture: Image.Image, side: int) -> str:
    size = fitted(picture.size, side)
    buffer = io.BytesIO()
    if picture.width * picture.height <= LOSSLESS and size == picture.size:
        picture.save(buffer, "WEBP", lossless=True)
    else:
        picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=92)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
