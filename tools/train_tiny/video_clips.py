"""Clips of the small video model: one thing on a plain background that moves, grows, shrinks, turns or stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from tools.train_tiny.captions import Phrase, on_background
from tools.train_tiny.colours import BACKGROUNDS
from tools.train_tiny.concepts import concepts
from tools.train_tiny.sprites import Sprites

SIDE, FRAMES, EVERY, FPS = 64, 9, 4, 8.0
"""Side of a clip in pixels, its number of frames, frames per latent after the first, and frames per second."""
THINGS = (
    *("cat", "dog", "pig", "rabbit", "panda", "lion", "fox", "elephant", "penguin", "owl", "frog", "whale", "fish"),
    *("crab", "butterfly", "rose", "cactus", "mushroom", "apple", "banana", "strawberry", "hamburger", "pizza", "car"),
    *("bus", "rocket", "airplane", "house", "umbrella", "guitar"),
)
"""What the model is taught, by first name."""
_STYLE = "3d"
_SHARP = 64
"""Side of the sprites that clips are drawn from."""
_UNSAID, _COLOURED = 0.1, 0.4
"""Shares of clips without a caption, for guidance, and with a background other than white."""


@dataclass(frozen=True)
class Motion:
    """What a thing does from the first frame to the last, at an even pace.

    ``said`` are ways to say it after the thing's name. ``begin`` and ``end`` are x, y and size, as shares of the side
    with the centre at 0, 0, and the angle in degrees, clockwise.
    """

    said: tuple[str, ...]
    begin: tuple[float, float, float, float]
    end: tuple[float, float, float, float]


MOTIONS = {
    "right": Motion(
        ("moves to the right", "moving to the right", "moves right", "moving right"),
        (-0.19, 0, 0.6, 0),
        (0.19, 0, 0.6, 0),
    ),
    "left": Motion(
        ("moves to the left", "moving to the left", "moves left", "moving left"),
        (0.19, 0, 0.6, 0),
        (-0.19, 0, 0.6, 0),
    ),
    "up": Motion(("moves up", "moving up"), (0, 0.19, 0.6, 0), (0, -0.19, 0.6, 0)),
    "down": Motion(("moves down", "moving down"), (0, -0.19, 0.6, 0), (0, 0.19, 0.6, 0)),
    "grow": Motion(("grows", "growing"), (0, 0, 0.4, 0), (0, 0, 0.85, 0)),
    "shrink": Motion(("shrinks", "shrinking"), (0, 0, 0.85, 0), (0, 0, 0.4, 0)),
    "turn": Motion(("turns", "turning"), (0, 0, 0.65, 0), (0, 0, 0.65, 90)),
    "still": Motion(("",), (0, 0, 0.65, 0), (0, 0, 0.65, 0)),
}


@dataclass(frozen=True)
class Clip:
    """A clip to draw: a thing by its place in ``THINGS``, on a background of a colour, 0 to 1.

    ``path`` has x, y, size and angle of each frame, ``(FRAMES, 4)``. ``caption`` may be empty.
    """

    thing: int
    path: npt.NDArray[np.float32]
    background: tuple[float, float, float]
    caption: str


def caption(thing: int, motion: str, background: str | None = None, way: int = 0) -> str:
    """What is said about a clip: "a cat moves up on a blue background"."""
    words = f"{Phrase(THINGS[thing])} {MOTIONS[motion].said[way]}".strip()
    return words if background is None else on_background(words, background)


def clip(thing: int, motion: str, background: str | None = None, said: str = "", jitter: Sequence[float] = ()) -> Clip:
    """A clip, with ``jitter`` added to x and y, and a factor of the size close to 1."""
    moves = MOTIONS[motion]
    dx, dy, factor = jitter or (0.0, 0.0, 1.0)
    path = np.linspace(moves.begin, moves.end, FRAMES)
    path[:, :2] += dx, dy
    path[:, 2] *= factor
    red, green, blue = (part / 255 for part in BACKGROUNDS[background or "white"])
    return Clip(thing, path.astype(np.float32), (red, green, blue), said)


def random_clip(rng: np.random.Generator) -> Clip:
    """A random clip for training."""
    thing, motion = int(rng.integers(len(THINGS))), list(MOTIONS)[rng.integers(len(MOTIONS))]
    colours = [colour for colour in BACKGROUNDS if colour != "white"]
    background = colours[rng.integers(len(colours))] if rng.random() < _COLOURED else None
    way = int(rng.integers(len(MOTIONS[motion].said)))
    said = "" if rng.random() < _UNSAID else caption(thing, motion, background, way)
    jitter = (*rng.uniform(-0.03, 0.03, 2).tolist(), float(rng.uniform(0.93, 1.07)))
    return clip(thing, motion, background, said, jitter)


def all_captions() -> list[str]:
    """Every caption that a clip may have."""
    backgrounds: list[str | None] = [None, *BACKGROUNDS]
    return [
        caption(thing, motion, background, way)
        for thing in range(len(THINGS))
        for motion, moves in MOTIONS.items()
        for way in range(len(moves.said))
        for background in backgrounds
    ]


def concept_of(thing: int) -> int:
    """A thing's place in the list of all concepts."""
    return [concept.name for concept in concepts()].index(THINGS[thing])


class Projector:
    """Draws clips from the sprites of a data set."""

    def __init__(self, sprites: Sprites, device: torch.device) -> None:
        of = {sprite.concept: i for i, sprite in enumerate(sprites.index) if sprite.style == _STYLE}
        chosen = [of[concept_of(thing)] for thing in range(len(THINGS))]
        values = torch.from_numpy(sprites.pictures[chosen]).to(device).permute(0, 3, 1, 2).float() / 255
        premultiplied = torch.cat([values[:, :3] * values[:, 3:], values[:, 3:]], dim=1)
        self._sprites = F.interpolate(premultiplied, (_SHARP, _SHARP), mode="area")

    @torch.no_grad()
    def __call__(self, clips: Sequence[Clip], every: int = 1) -> torch.Tensor:
        """Draw each ``every``-th frame: ``(B, 3, frames, SIDE, SIDE)``, -1 to 1."""
        device = self._sprites.device
        paths = torch.from_numpy(np.stack([each.path[::every] for each in clips])).to(device)
        x, y, size, angle = paths.flatten(0, 1).unbind(1)
        turn = angle * math.pi / 180
        cos, sin = torch.cos(turn) / size, torch.sin(turn) / size
        # From the frame's coordinates to the sprite's; affine_grid's go from -1 to 1.
        theta = torch.stack(
            [cos, sin, -2 * (cos * x + sin * y), -sin, cos, -2 * (-sin * x + cos * y)],
            dim=1,
        ).unflatten(1, (2, 3))
        count = paths.shape[1]
        numbers = torch.tensor([each.thing for each in clips], device=device).repeat_interleave(count)
        grid = F.affine_grid(theta, [len(numbers), 4, SIDE, SIDE], align_corners=False)
        drawn = F.grid_sample(self._sprites[numbers], grid, padding_mode="zeros", align_corners=False)
        shades = torch.tensor([each.background for each in clips], device=device).repeat_interleave(count, 0)
        frames = drawn[:, :3] + shades[:, :, None, None] * (1 - drawn[:, 3:])
        return (frames * 2 - 1).unflatten(0, (len(clips), count)).transpose(1, 2)
