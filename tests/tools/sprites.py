"""A data set that needs no network: coloured squares."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from tools.train_tiny.sprites import SIDE, STYLES, Sprite, Sprites


def few_sprites(colour: tuple[int, int, int] | None = None) -> Sprites:
    """The first six concepts in three styles, each a square with its own colour, or with the given one."""
    pictures, index = [], []
    for concept, own in enumerate(permutations((210, 120, 30))):
        for style in STYLES:
            picture = np.zeros((SIDE, SIDE, 4), np.uint8)
            picture[..., :3] = colour or own
            picture[..., 3] = 255
            pictures.append(picture)
            index.append(Sprite(concept, style, colourful=True))
    return Sprites(np.stack(pictures), index)
