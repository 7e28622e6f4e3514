"""Rows of the table: how many frames a video has, and how fast they follow one another."""

from __future__ import annotations

from typing import Any

from h2gen.checks import Rule
from h2gen.settings.setting import picture_row

MOST_FRAMES = 1025
"""A minute at 16 frames per second. No model that is known here was made for more than a few seconds."""
VIDEO_FORMATS = ("mp4", "gif", "webp")
"""The first one is used if none is given."""


class _OfVideos(Rule):
    """As ``Rule``, and None for a picture."""

    def check(self, name: str, value: Any) -> Any:
        return None if value is None else super().check(name, value)


FRAMES = picture_row(
    "frames",
    "Number of frames of a video, such as 61.",
    _OfVideos(int, 1, MOST_FRAMES),
    later=True,
)
FPS = picture_row(
    "fps",
    "Frames per second of a video.",
    _OfVideos(float, 1, 120),
    later=True,
)
