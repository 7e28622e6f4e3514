"""Settings that a model does not use: those that it ignores, and those that it refuses."""

from __future__ import annotations

from typing import NamedTuple


class Unused(NamedTuple):
    """Why a model does not use a setting.

    Args:
        why: what follows the model's name in a message, such as ``has no true guidance; use --guidance``.
        refused: whether a picture cannot be made with it; otherwise it has no effect.
    """

    why: str
    refused: bool = False


NOT_DISTILLED = Unused("is not guidance-distilled; use --cfg")
NO_GUIDANCE = Unused("is distilled and takes no guidance; leave it out")
NO_TRUE_GUIDANCE = Unused("has no true guidance; use --guidance", refused=True)
NO_NEGATIVE = Unused("has no true guidance, which a negative prompt needs; leave it out", refused=True)
