"""Remarks on prompts and settings that a model probably does not read as they were meant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from h2gen.models.catalogue import Checkpoint
from h2gen.models.vocabulary import vocabulary
from h2gen.settings.model_options import Remark, ignored_options
from h2gen.settings.synonyms import meant
from h2gen.settings.table import BY_NAME, TABLE
from h2gen.settings.values import Settings
from h2gen.wording import printable, shown, times

_OPTIONS = {row.name: row.option for row in TABLE if row.commands}
_SHORT = "".join(row.short[1] for row in TABLE if row.short and row.is_setting)
_OPTION = re.compile(rf"(?<!\S)(?:--([A-Za-z][\w-]*)|-([{_SHORT}])(?=\s+\S))")
_SYNTAX = {
    "tag": (
        re.compile(r"<(?:lora|lyco|hypernet)\b[^<>]*>", re.I),
        "LoRAs are not loaded from prompts; give --lora FILE:SCALE",
    ),
    "weight": (re.compile(r"\([^():]*[^():\d]:\s*[0-2]?(?:\.\d+|(?<=[0-2]))\)"), "prompt weights are not supported"),
    "wildcard": (
        # Written so that the time does not grow with the square of the length: a prompt may come from anywhere.
        re.compile(r"\{[^{}|]*\|[^{}]*\}|\[[^\[\]|]*\|[^\[\]]*\]|(?<!\w)__[\w/*-]{0,60}\w__(?!\w)"),
        "wildcards are not supported; write one prompt per line of a file",
    ),
    "comment": (re.compile(r"(?<=\s)#\s.*"), "a comment needs a line of its own"),
}
"""Syntax of other programs in a prompt, and what to say about each."""


def remarks_on(prompt: str, settings: Settings, checkpoint: Checkpoint) -> Iterator[Remark]:
    """Remarks on what is probably not read as it was meant, at most one of each kind.

    Args:
        prompt: the text; the settings' own is ignored.
        settings: of its picture.
        checkpoint: of the model.
    """
    for option in _OPTION.finditer(prompt):
        ours = meant(option[1], _OPTIONS) if option[1] else _short(option[2])
        if ours is not None:
            wanted = _OPTIONS[ours]
            yield Remark("option", f"{option[0]!r} is read as words of the prompt; give {wanted} outside the prompt.")
            break
    for kind, (pattern, advice) in _SYNTAX.items():
        found = pattern.search(prompt) or pattern.search(settings.negative)
        if found is not None:
            yield Remark(kind, f"{shown(found[0])} is read as plain words: {advice}.")
    yield from ignored_options(settings, checkpoint)
    yield from _about_loras(settings)
    yield from _about_vocabulary(prompt, settings, checkpoint)


def _about_loras(settings: Settings) -> Iterator[Remark]:
    """About LoRAs that were given several times, also under different names."""
    for sha256, number in Counter(file.sha256 for file in settings.lora).items():
        same = [file for file in settings.lora if file.sha256 == sha256]
        if number > 1:
            total = sum(1.0 if file.scale is None else file.scale for file in same)
            names = " and ".join(dict.fromkeys(repr(printable(file.name)) for file in same))
            how = "is given" if "' and '" not in names else "are the same LoRA, given"
            yield Remark("lora", f"--lora {names} {how} {times(number)}; the scales add up to {total:g}.")


def _short(letter: str) -> str | None:
    return next((name for name in _OPTIONS if BY_NAME[name].short == f"-{letter}"), None)


def _about_vocabulary(prompt: str, settings: Settings, checkpoint: Checkpoint) -> Iterator[Remark]:
    known = vocabulary(checkpoint)
    if known is None:
        return
    for marks in (_SYNTAX["tag"][0], _SYNTAX["comment"][0], _OPTION):
        prompt = marks.sub(" ", prompt)  # these have a remark of their own
    unknown = known.unknown(prompt)
    if unknown:
        words = ", ".join(shown(word) for word in unknown[:3]) + (" and others" if len(unknown) > 3 else "")
        close = known.closest(unknown[0])
        hint = f"; did you mean {close!r}?" if close else "."
        yield Remark(
            "word",
            f"The bundled model does not know {words}{hint} 'h2gen models show {checkpoint.name}' lists what it knows.",
        )
    if max(settings.width, settings.height) > known.largest_side:
        sides = dict.fromkeys((known.smallest_side, known.largest_side))
        trained = " to ".join(f"{side}x{side}" for side in sides)
        made = "pictures" if settings.frames is None else "videos"
        yield Remark(
            "size",
            f"The bundled model was trained at {trained}; expect poor {made} at {settings.width}x{settings.height}.",
        )
    if settings.frames is not None and settings.frames > checkpoint.defaults.frames:
        yield Remark(
            "frames",
            f"The bundled model was trained with {checkpoint.defaults.frames} frames; expect poor videos with "
            f"{settings.frames}.",
        )
