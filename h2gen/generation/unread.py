"""What a model does not read of a prompt, in words."""

from __future__ import annotations

from dataclasses import dataclass

from h2gen.settings.table import MOST_TOKENS
from h2gen.wording import printable

_HEAD, _TAIL = 80, 20
"""Characters of a long text that are shown."""


@dataclass(frozen=True)
class Unread:
    """The end of a prompt that a model does not read.

    Args:
        setting: "prompt" or "negative".
        text: what is left out.
        limit: tokens that the model reads.
        needed: tokens that the whole prompt has.
    """

    setting: str
    text: str
    limit: int
    needed: int

    def __str__(self) -> str:
        text = printable(self.text)
        if len(text) > _HEAD + _TAIL + 5:
            text = f"{text[:_HEAD].rstrip()} ... {text[-_TAIL:].lstrip()}"
        what = "negative prompt" if self.setting == "negative" else "prompt"
        line = f"The {what} is truncated to {self.limit} tokens; left out: {text!r}."
        if self.needed <= MOST_TOKENS:
            return f"{line} A max-sequence-length of {self.needed} reads all of it."
        if self.limit < MOST_TOKENS:
            return f"{line} A max-sequence-length of {MOST_TOKENS}, the maximum, reads more of it."
        return line
