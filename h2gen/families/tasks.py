"""What the pipelines of a task take: strengths, and how many pictures of which size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

STRENGTHS: Mapping[str, float] = {
    "image": 0.6,
    "inpaint": 0.85,
    "fill": 1.0,
    "control image": 0.6,
    "control inpaint": 0.85,
    "controlnet image": 0.6,
    "controlnet inpaint": 0.85,
}
"""The tasks that run only the last part of the schedule, and the part that they run if the user does not say."""

LEAST_SIDE, MOST_ASPECT = 64, 8
"""Of a reference: pixels of its shorter side, and how many times as long the other one may be (FLUX.2's limits)."""


class Limits(NamedTuple):
    """What a pipeline takes at most: input pictures, and pixels of the picture that it makes."""

    pictures: int = 1
    pixels: int | None = None
