"""An entry of a prompt file: what it may say, and what is told of one that says something else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from h2gen.errors import PromptFileError, SettingError
from h2gen.settings.values import clean_prompt
from h2gen.wording import did_you_mean, printable, shown

MOST_MISTAKES = 1000
"""After so many a file is not read on: it is of another kind than its name says."""
_LONGEST_MISTAKE = 500

_NUMBER = (int, float)
KEYS: dict[str, tuple[type, ...]] = {
    "negative": (str,),
    "seed": (int, str, list),
    "count": (int,),
    "steps": (int,),
    "solver": (str,),
    "size": (str,),
    "width": (int,),
    "height": (int,),
    "guidance": _NUMBER,
    "cfg": _NUMBER,
    "max_sequence_length": (int,),
    "preset": (str,),
    "tau1": _NUMBER,
    "tau2": _NUMBER,
    "warmup_steps": (int,),
    "final_steps": (int,),
    "max_consecutive": (int,),
    "forecast": (int,),
    "plan": (str,),
    "tolerance": (int, float),
    "budget": (bool,),
    "hierarchy": (str,),
    "max_detail_age": (int,),
    "pfs": (str,),
    "no_cache": (bool,),
    "name": (str,),
}
"""What an entry may say beside its prompt, and its types."""
RUN_WIDE = ("model", "base", "device", "dtype", "offload", "out", "format")
_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Given(dict[str, Any]):
    """Settings that stand in a file, with the place of each key that has one of its own, as ``FILE:LINE``."""

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str] = NOTHING) -> None:
        super().__init__(values)
        self.places = places


def places_of(given: Mapping[str, Any]) -> Mapping[str, str]:
    """The places of those keys of some settings that have one of their own."""
    return given.places if isinstance(given, Given) else NOTHING


def place_of(given: Mapping[str, Any], key: str, source: str) -> str:
    """Where a key of some settings stands; ``source`` where nothing more is known."""
    return places_of(given).get(key, source)


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt of a file.

    ``given`` overrides settings for it alone, ``defaults`` are its file's. ``notes`` is the JSON text of whatever
    else a line of JSON held. ``source`` is ``FILE:LINE``.
    """

    prompt: str
    source: str
    given: Mapping[str, Any]
    defaults: Mapping[str, Any]
    notes: str | None = None


@dataclass
class Reading:
    """What was found in prompt files: entries, and mistakes as lines that name file, line and key.

    ``broken`` are entries with a mistake: the rest of their settings is still to be looked at.
    """

    entries: list[Entry] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    broken: list[Entry] = field(default_factory=list)

    def wrong(self, mistake: str) -> None:
        """Note a mistake.

        Raises:
            PromptFileError: there are so many of them now that reading on would help nobody.
        """
        long = len(mistake) > _LONGEST_MISTAKE
        self.mistakes.append(f"{mistake[:_LONGEST_MISTAKE]}..." if long else mistake)
        if len(self.mistakes) >= MOST_MISTAKES:
            self.check()

    def check(self) -> None:
        """Raise what was found wrong.

        Raises:
            PromptFileError: there is a mistake, or no prompt at all.
        """
        if self.mistakes:
            self.mistakes.sort(key=_in_order)
            shown = self.mistakes[:20]
            more = len(self.mistakes) - len(shown)
            least = "at least " if len(self.mistakes) >= MOST_MISTAKES else ""
            raise PromptFileError("\n".join([*shown, *([f"... and {least}{more} more."] if more else [])]))

    def add(
        self,
        source: str,
        prompt: Any,
        given: Mapping[str, Any] = NOTHING,
        defaults: Mapping[str, Any] = NOTHING,
        *,
        key: str = "prompt",
        notes: str | None = None,
    ) -> None:
        """Take an entry, or note what is wrong with it. ``key`` is what its file calls the prompt."""
        before = len(self.mistakes)
        if not isinstance(prompt, str):
            self.wrong(f"{source}: {printable(key)} is {shown(prompt)}; give it as text.")
        else:
            try:
                prompt = clean_prompt(prompt)
            except SettingError as error:
                self.wrong(f"{source}: {error}")
        given = self.checked(source, given) if given else NOTHING
        right = len(self.mistakes) == before
        (self.entries if right else self.broken).append(Entry(prompt, source, given, defaults, notes))

    def checked(self, source: str, given: Mapping[str, Any], what: str = "") -> Given:
        """The settings whose key and type are right; the others become mistakes, told of ``what`` if that is given."""
        right: dict[str, Any] = {}
        whole = source
        for key, value in given.items():
            source = f"{place_of(given, key, whole)}{what}"
            if key in RUN_WIDE:
                self.wrong(f"{source}: {key} is one for the whole run; give --{key} on the command line.")
            elif key not in KEYS:
                self.wrong(f"{source}: there is no setting {shown(key)}{did_you_mean(key, KEYS)}")
            elif (isinstance(value, bool) and bool not in KEYS[key]) or not isinstance(value, KEYS[key]):
                kinds = [kind for kind in KEYS[key] if not (kind is int and float in KEYS[key])]
                wanted = " or ".join(_TYPE_NAMES[kind] for kind in kinds)
                self.wrong(f"{source}: {key} is {shown(value)}; give {wanted}.")
            elif key == "preset" and any(mark in str(value) for mark in ("/", "\\", ".toml")):
                self.wrong(
                    f"{source}: preset is {shown(value)}; a prompt file can name a preset, but not a file of one."
                )
            else:
                right[key] = value
        return Given(right, places_of(given))


def _in_order(mistake: str) -> tuple[str, int]:
    """What mistakes are sorted by: the file, and the line in it."""
    match = re.match(r"(.*?):(\d+): ", mistake)
    return (match[1], int(match[2])) if match else (mistake, 0)


def first_line(error: Exception) -> str:
    """What a library says, in short and without its full stop."""
    return printable(str(error).split("\n")[0]).rstrip(".")
