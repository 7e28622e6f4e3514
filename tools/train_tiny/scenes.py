"""Random scenes: things, their places and colours, and a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.train_tiny.captions import Phrase, describe
from tools.train_tiny.colours import BACKGROUNDS, TINTS
from tools.train_tiny.concepts import COMMON, Concept, concepts
from tools.train_tiny.sprites import STYLES, Sprites

_SQUARE = ((96, 96), (128, 128), (160, 160), (192, 192), (256, 256))
_UPRIGHT = ((144, 96), (160, 112), (192, 128))
SHAPES = (*_SQUARE, *_UPRIGHT, *((width, height) for height, width in _UPRIGHT))
"""Height and width of rendered scenes. 160 x 112 is what h2gen makes of 2:3."""
_KINDS = ("one", "beside", "above", "several")
_KIND_SHARES = (0.3, 0.38, 0.16, 0.16)
SMALL, LARGE = ("small", "tiny"), ("big", "large")
"""Adjectives of the size of a single thing."""
_UNSAID = 0.1
"""Share of scenes without a caption, for classifier-free guidance."""


@dataclass(frozen=True)
class Thing:
    """A sprite in a scene. ``x``, ``y`` is its centre and ``size`` its side, as shares of the picture's shorter side;
    the picture's centre is 0, 0."""

    sprite: int
    x: float
    y: float
    size: float
    tint: str | None = None


@dataclass(frozen=True)
class Scene:
    """A picture to render. ``background`` is RGB, 0 to 1. ``caption`` may be empty."""

    things: tuple[Thing, ...]
    background: tuple[float, float, float]
    caption: str


@dataclass(frozen=True)
class Variety:
    """How much scenes vary. With less variety, more is learnt in the same time.

    The share ``common`` of things is drawn from the common concepts, the rest from all; ``styles`` are the shares of
    ``STYLES``. ``exact`` scenes have each thing exactly at its place, on a background of exactly the named colour.
    """

    common: float = 0.5
    styles: tuple[float, ...] = (0.5, 0.25, 0.25)
    exact: bool = False


class Stage:
    """Draws random scenes from the sprites of a data set."""

    def __init__(self, sprites: Sprites, variety: Variety | None = None) -> None:
        self.concepts: list[Concept] = concepts()
        self._sprites, self._variety = sprites, variety or Variety()
        self._of: list[dict[str, int]] = [{} for _ in self.concepts]
        for number, sprite in enumerate(sprites.index):
            self._of[sprite.concept][sprite.style] = number
        self._by_style = {
            style: np.array([i for i, found in enumerate(self._of) if style in found]) for style in STYLES
        }

    def scene(self, rng: np.random.Generator, aspect: float = 1.0) -> Scene:
        """A random scene for a picture whose width is ``aspect`` times its height."""
        style = STYLES[rng.choice(len(STYLES), p=self._variety.styles)]
        kind = _KINDS[rng.choice(len(_KINDS), p=_KIND_SHARES)]
        if aspect > 1.2 and kind == "above":
            kind = "beside"
        elif aspect < 0.8 and kind == "beside":
            kind = "above"
        background = None
        shade = BACKGROUNDS["white"]
        if rng.random() < (0.35 if kind == "one" else 0.5):
            background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
            shade = BACKGROUNDS[background]
        if kind == "several":
            phrases, things = self._several(style, background, aspect, rng)
        elif kind == "one":
            phrases, things = self._one(style, background, rng)
        else:
            phrases, things = self._two(style, background, kind == "above", aspect, rng)
        caption = "" if rng.random() < _UNSAID else describe(phrases, style, background, kind == "above", rng)
        exact = self._variety.exact or background in (None, "white")
        jittered = np.clip(np.array(shade) + (0 if exact else rng.normal(0, 8, 3)), 0, 255)
        red, green, blue = (float(part) / 255 for part in jittered)
        return Scene(things, (red, green, blue), caption)

    def styles_of(self, concept: int) -> list[str]:
        """The styles that a concept has sprites in."""
        return list(self._of[concept])

    def one(self, concept: int, style: str, phrase: str = "") -> Scene:
        """A single thing on white, as meant by a caption that names nothing else."""
        return Scene((Thing(self._of[concept][style], 0, 0, 0.88),), (1.0, 1.0, 1.0), phrase)

    def _one(
        self, style: str, background: str | None, rng: np.random.Generator
    ) -> tuple[list[Phrase], tuple[Thing, ...]]:
        concept = self._concept(style, rng)
        adjectives: tuple[str, ...] = ()
        size = 0.88
        if (chance := rng.random()) < 0.12:
            adjectives, size = (SMALL[rng.integers(2)],), 0.45
        elif chance < 0.2:
            adjectives, size = (LARGE[rng.integers(2)],), 0.97
        phrase, tint = self._phrase(concept, style, background, rng, adjectives)
        return [phrase], (self._thing(concept, style, 0, 0, size, tint, rng),)

    def _two(
        self, style: str, background: str | None, above: bool, aspect: float, rng: np.random.Generator
    ) -> tuple[list[Phrase], tuple[Thing, ...]]:
        longer = max(aspect, 1 / aspect) if above == (aspect < 1) else 1.0
        size = min(0.92, 0.47 * longer)
        first, second = self._concept(style, rng), self._concept(style, rng)
        phrases, things = [], []
        for concept, side in ((first, -1), (second, 1)):
            phrase, tint = self._phrase(concept, style, background, rng)
            place = side * 0.245 * longer
            x, y = (0.0, place) if above else (place, 0.0)
            phrases.append(phrase)
            things.append(self._thing(concept, style, x, y, size, tint, rng))
        return phrases, tuple(things)

    def _several(
        self, style: str, background: str | None, aspect: float, rng: np.random.Generator
    ) -> tuple[list[Phrase], tuple[Thing, ...]]:
        concept = self._concept(style, rng)
        count = int(rng.integers(2, 5))
        phrase, tint = self._phrase(concept, style, background, rng, count=count)
        places, size = _arrangement(count, aspect)
        return [phrase], tuple(self._thing(concept, style, x, y, size, tint, rng) for x, y in places)

    def _thing(
        self, concept: int, style: str, x: float, y: float, size: float, tint: str | None, rng: np.random.Generator
    ) -> Thing:
        sprite = self._of[concept][style]
        if self._variety.exact:
            return Thing(sprite, x, y, size, tint)
        dx, dy = rng.uniform(-0.012, 0.012, 2)  # with jitter, so that no two scenes are the same
        return Thing(sprite, x + float(dx), y + float(dy), size * float(rng.uniform(0.96, 1.02)), tint)

    def _concept(self, style: str, rng: np.random.Generator) -> int:
        there = self._by_style[style]
        if rng.random() < self._variety.common:
            there = there[there < COMMON]
        return int(rng.choice(there))

    def _phrase(
        self,
        concept: int,
        style: str,
        background: str | None,
        rng: np.random.Generator,
        adjectives: tuple[str, ...] = (),
        count: int = 1,
    ) -> tuple[Phrase, str | None]:
        names = self.concepts[concept].names
        name = names[0] if rng.random() < 0.7 else names[rng.integers(len(names))]
        tint = None
        coloured = not BACKGROUNDS.keys().isdisjoint(name.split())  # "red apple"
        if not coloured and self._sprites.index[self._of[concept][style]].colourful and rng.random() < 0.15:
            tint = list(TINTS)[rng.integers(len(TINTS))]
            if tint == background:
                tint = None
        return Phrase(name, (*adjectives, *([tint] if tint else [])), count), tint


def _arrangement(count: int, aspect: float) -> tuple[Sequence[tuple[float, float]], float]:
    """Places and sizes of several things of one kind."""
    if count == 4:
        return [(-0.245, -0.245), (0.245, -0.245), (-0.245, 0.245), (0.245, 0.245)], 0.46
    if count == 3 and 0.8 < aspect < 1.2:
        return [(0.0, -0.245), (-0.245, 0.245), (0.245, 0.245)], 0.46
    longer = max(aspect, 1 / aspect)
    step = longer / count
    row = [(i - (count - 1) / 2) * step for i in range(count)]
    size = min(0.9, 0.94 * step)
    return [(0.0, place) if aspect < 0.8 else (place, 0.0) for place in row], size
