"""What a small model was taught, from the file that its training left: the bundled model knows a hundred things."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from h2gen.models.catalogue import Checkpoint

KNOWS = "knows.json"
"""The file in the folder of a bundled checkpoint."""
_SMALL_WORDS = frozenset({"the", "with", "and", "very", "some", "one", "its", "this", "that"})
_WORD = re.compile(r"[^\W\d_][\w'-]*")


@dataclass(frozen=True)
class Vocabulary:
    """What the captions and pictures of the training data had.

    Args:
        things: the names of each thing, the usual one first.
        colours, sizes, numbers: adjectives of things.
        layouts, styles: phrases, with A, B and X for things.
        motions: likewise, of videos; a thing alone stays still.
        backgrounds: colours.
        shapes: width and height of the pictures, in pixels.
        words: all words of the captions, in lower case.
    """

    things: Sequence[Sequence[str]]
    colours: Sequence[str]
    sizes: Sequence[str]
    numbers: Sequence[str]
    layouts: Sequence[str]
    styles: Sequence[str]
    backgrounds: Sequence[str]
    shapes: Sequence[tuple[int, int]]
    words: frozenset[str]
    motions: Sequence[str] = ()

    @property
    def smallest_side(self) -> int:
        """Pixels."""
        return min(side for shape in self.shapes for side in shape)

    @property
    def largest_side(self) -> int:
        """Pixels."""
        return max(side for shape in self.shapes for side in shape)

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that no caption had, other than small ones such as "the"."""
        found = dict.fromkeys(_WORD.findall(prompt))
        known = self.words, _SMALL_WORDS
        named = [word for word in found if len(word) > 2 or _is_uncased(word)]
        return [word for word in named if not any(word.lower() in words for words in known)]

    def closest(self, word: str) -> str | None:
        """The word that is probably meant by an unknown one."""
        return _closest(word.lower(), self.words)


def _is_uncased(word: str) -> bool:
    """Whether its script has no capitals, as Chinese and Japanese; one letter can be a whole word there."""
    return word.upper() == word.lower()


def vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """What a model was taught; None unless it is a bundled one."""
    return _read(Path(checkpoint.location)) if checkpoint.kind == "bundled" else None


@lru_cache(maxsize=1000)
def _closest(word: str, words: frozenset[str]) -> str | None:
    """Remembered, since the prompts of a large batch share most of their words."""
    close = difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.75)
    return close[0] if close else None


@cache
def _read(folder: Path) -> Vocabulary | None:
    try:
        facts = json.loads((folder / KNOWS).read_text(encoding="utf-8"))
        words = frozenset(facts.pop("words"))
        return Vocabulary(words=words, shapes=[(width, height) for width, height in facts.pop("shapes")], **facts)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # a damaged installation: loading the model reports it
