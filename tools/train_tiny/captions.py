"""Captions of scenes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import inflect
import numpy as np

PICTURE = {  # {x} is the content of the picture
    "3d": ("{x}", "{x}", "{x}", "{x}", "a picture of {x}", "a photo of {x}", "a 3d render of {x}", "{x}, 3d render"),
    "flat": ("a flat icon of {x}", "a flat illustration of {x}", "{x}, flat icon"),
    "cartoon": ("a cartoon of {x}", "a cartoon drawing of {x}", "{x}, cartoon"),
}
BESIDE = ("{a} beside {b}", "{a} next to {b}", "{a} and {b}", "{a} to the left of {b}", "{b} to the right of {a}")
ABOVE = ("{a} above {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}")
NUMBERS = {2: "two", 3: "three", 4: "four"}
_PLURALS = frozenset(
    (
        "beans",
        "blueberries",
        "books",
        "cherries",
        "chopsticks",
        "french fries",
        "fries",
        "glasses",
        "gloves",
        "grapes",
        "headphones",
        "jeans",
        "maracas",
        "pancakes",
        "peanuts",
        "scissors",
        "socks",
        "sunglasses",
    )
)
_JOINT = re.compile(r"(.+?)( of | with | on |$)(.*)")
_words = inflect.engine()


@dataclass(frozen=True)
class Phrase:
    """One thing, or several of one kind, in words: "a small blue cat", "three apples"."""

    name: str
    adjectives: tuple[str, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        said = " ".join([*self.adjectives, self.name])
        if self.count > 1:
            return f"{NUMBERS[self.count]} {' '.join([*self.adjectives, plural(self.name)])}"
        return said if is_plural(self.name) else _words.a(said)


@cache
def plural(name: str) -> str:
    """The plural of a name: "cup of coffee" becomes "cups of coffee"."""
    if is_plural(name):
        return name
    head, joint, rest = _JOINT.match(name).groups()  # type: ignore[union-attr]
    return f"{_words.plural_noun(head)}{joint}{rest}"


def is_plural(name: str) -> bool:
    """Whether the name is a plural and takes no article: "grapes", "scissors"."""
    return name in _PLURALS


def describe(
    phrases: Sequence[Phrase], style: str, background: str | None, above: bool, rng: np.random.Generator
) -> str:
    """The caption of one phrase, or of two, where the first is left of the second or, if ``above``, above it."""
    if len(phrases) == 1:
        seen = str(phrases[0])
    else:
        a, b = phrases
        seen = _one(ABOVE if above else BESIDE, rng).format(a=a, b=b)
    if background is not None:
        seen = on_background(seen, background)
    return _one(PICTURE[style], rng).format(x=seen)


def on_background(seen: str, colour: str) -> str:
    """Add the background colour to a caption."""
    return f"{seen} on {_words.a(colour)} background"


def _one(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
