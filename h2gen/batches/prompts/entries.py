"""Entries of prompt files: the keys they may have, and the errors found in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from h2gen.errors import PromptFileError, SettingError
from h2gen.sanitize import sanitize
from h2gen.settings.synonyms import meant_or_close, suggestion
from h2gen.settings.table import TABLE
from h2gen.settings.values import clean_prompt
from h2gen.wording import printable, shown

MOST_MISTAKES = 1000
"""Reading stops after this many errors: the file is probably not what its name says."""
_LONGEST_MISTAKE = 500

KEYS = {row.name: row for row in TABLE if row.per_prompt}
"""The rows of the table of settings that an entry can give besides its prompt, by name."""
RUN_WIDE = tuple(row.name for row in TABLE if row.lasting and not row.per_prompt)
"""Settings that are the same for a whole run."""
_EVERYDAY = (
    " images number repeat repeats iterations n generator resolution res dims dimensions shape ratio aspect w h g gs "
    "method scale profile tau threshold image_size img_size image_width image_height img_width img_height "
)
"""Other programs' names for settings that are notes here: data sets use them for other things."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Given(dict[str, Any]):
    """Settings from a file, with the place (``FILE:LINE``) of each key that has one."""

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str] = NOTHING) -> None:
        super().__init__(values)
        self.places = places


def places_of(given: Mapping[str, Any]) -> Mapping[str, str]:
    """The places of the keys that have one."""
    return given.places if isinstance(given, Given) else NOTHING


def place_of(given: Mapping[str, Any], key: str, source: str) -> str:
    """The place of a key, or ``source`` if it has none."""
    return places_of(given).get(key, source)


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt of a file.

    ``given`` are the entry's own settings, ``defaults`` its file's. ``notes`` is the JSON text of everything else in a
    line of JSON. ``source`` is ``FILE:LINE``.
    """

    prompt: str
    source: str
    given: Mapping[str, Any]
    defaults: Mapping[str, Any]
    notes: str | None = None


@dataclass
class Reading:
    """What was read from prompt files: entries, and errors as lines with file, line number and key.

    ``broken`` are entries with an error, whose other settings are still to be checked. ``folder`` is that of the file
    being read, in which relative paths of pictures and LoRAs begin; None if there is no file.
    """

    entries: list[Entry] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    broken: list[Entry] = field(default_factory=list)
    folder: Path | None = None

    def wrong(self, mistake: str) -> None:
        """Note an error.

        Raises:
            PromptFileError: there are so many that reading on is pointless.
        """
        line = f"{mistake[:_LONGEST_MISTAKE]}..." if len(mistake) > _LONGEST_MISTAKE else mistake
        if line in self.mistakes[-len(KEYS) :]:
            return  # two settings of one entry that only go together have the same error
        self.mistakes.append(line)
        if len(self.mistakes) >= MOST_MISTAKES:
            self.check()

    def check(self) -> None:
        """Raise the errors found so far.

        Raises:
            PromptFileError: there are any.
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
        """Add an entry, or note its errors. ``key`` is the prompt's key in the file."""
        before = len(self.mistakes)
        if not isinstance(prompt, str):
            self.wrong(f"{source}: {printable(key)} is {shown(prompt)}; give it as text.")
        else:
            try:
                prompt = clean_prompt(prompt, may_be_empty=True)
            except SettingError as error:
                self.wrong(f"{source}: {error}")
        given = self.checked(source, given) if given else NOTHING
        right = len(self.mistakes) == before
        (self.entries if right else self.broken).append(Entry(prompt, source, given, defaults, notes))

    def add_item(self, source: str, item: Mapping[str, Any], key: str) -> None:
        """Add an entry from an object, or record its errors. What is not a setting becomes a note."""
        notes = {name: value for name, value in item.items() if name != key and not _is_setting(name)}
        for name in notes:
            self.check_key(source, name)
        given = {name: item[name] for name in item if name != key and name not in notes and item[name] is not None}
        kept = sanitize(notes)
        self.add(
            source,
            item.get(key, "" if "redux" in given else None),
            given,
            key=key,
            notes=json.dumps(kept) if kept else None,
        )

    def check_key(self, source: str, name: str) -> bool:
        """Whether a key is a setting or may be a note; if it was meant as a setting, an error is recorded."""
        ours = _meant(name)
        if ours is not None:
            self.wrong(f"{source}: there is no setting {shown(name)}; did you mean {ours!r}?")
        return ours is None

    def checked(self, source: str, given: Mapping[str, Any], what: str = "") -> Given:
        """The settings that can be used; errors are noted for the others, with ``what`` after their place."""
        right: dict[str, Any] = {}
        whole = source
        for key, value in given.items():
            source = f"{place_of(given, key, whole)}{what}"
            if key in RUN_WIDE:
                self.wrong(f"{source}: {key} applies to the whole run; give --{key} on the command line.")
            elif key not in KEYS:
                self.wrong(f"{source}: there is no setting {shown(key)}{suggestion(key, KEYS)}")
            elif key == "preset" and any(mark in str(value) for mark in ("/", "\\", ".toml")):
                self.wrong(f"{source}: preset is {shown(value)}; a prompt file can name a preset, but not its file.")
            else:
                try:
                    if key != "seed":  # seeds have their own syntax, checked when they are read
                        KEYS[key].check(value)
                    right[key] = value if self.folder is None else KEYS[key].beside(self.folder, value)
                except SettingError as error:
                    self.wrong(f"{source}: {error}")
        return Given(right, places_of(given))


def _is_setting(name: str) -> bool:
    return name in KEYS or name in RUN_WIDE


@lru_cache(maxsize=1000)
def _meant(name: str) -> str | None:
    """The setting that was meant by a key which is none. Remembered, since all lines of a file have the same keys."""
    return None if _is_setting(name) or f" {name} " in _EVERYDAY else meant_or_close(name, KEYS, cutoff=0.85)


def _in_order(mistake: str) -> tuple[str, int]:
    """The sort key of an error: its file and line."""
    match = re.match(r"(.*?):(\d+): ", mistake)
    return (match[1], int(match[2])) if match else (mistake, 0)


def first_line(error: Exception) -> str:
    """The first line of a library's message, without its full stop."""
    return printable(str(error).split("\n")[0]).rstrip(".")
