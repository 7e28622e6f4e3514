"""What the bundled model was taught, for ``knows.json`` next to its weights."""

from __future__ import annotations

import re
from typing import Any

from tools.train_tiny.captions import ABOVE, BESIDE, NUMBERS, PICTURE, on_background, plural
from tools.train_tiny.colours import BACKGROUNDS, TINTS
from tools.train_tiny.concepts import concepts
from tools.train_tiny.scenes import LARGE, SHAPES, SMALL


def knowledge(known: int) -> dict[str, Any]:
    """What the captions and pictures of the training data have, for the ``known`` most common concepts."""
    things = [list(concept.names) for concept in concepts()[:known]]
    facts: dict[str, Any] = {
        "things": things,
        "colours": list(TINTS),
        "sizes": [*SMALL, *LARGE],
        "numbers": list(NUMBERS.values()),
        "layouts": [each.format(a="A", b="B") for each in (*BESIDE, *ABOVE)],
        "backgrounds": list(BACKGROUNDS),
        "styles": sorted({each.format(x="X") for styles in PICTURE.values() for each in styles} - {"X"}),
        "shapes": sorted(([width, height] for height, width in SHAPES), key=lambda shape: (shape[0] * shape[1], shape)),
    }
    names = [name for concept in things for name in concept]
    said = [*names, *map(plural, names), *(on_background("a an", colour) for colour in BACKGROUNDS)]
    said += [each for key in ("colours", "sizes", "numbers", "layouts", "styles") for each in facts[key]]
    facts["words"] = sorted({word for text in said for word in re.findall(r"[\w'-]+", text.lower())})
    return facts
