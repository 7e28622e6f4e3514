"""Prompt files in JSON: an object or a text per line, or one list of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

from h2gen.batches.prompts.entries import Reading, first_line
from h2gen.errors import SettingError
from h2gen.sanitize import is_deep
from h2gen.settings.synonyms import meant
from h2gen.wording import did_you_mean, printable, shown

DEEPEST = 32
"""Levels of nesting in an entry; anything deeper is useless as a note, and slow to read from the metadata."""


def read_json_lines(reading: Reading, lines: Iterable[tuple[str, str]], key: str) -> None:
    """Add the entry of each line, given with its ``FILE:LINE``; ``key`` is the prompt's."""
    decoder = _decoder()
    for source, text in lines:
        try:
            item = decoder.decode(text)
        except RecursionError:
            reading.wrong(f"{source}: it is nested too deeply.")
        except ValueError as error:
            reading.wrong(f"{source}: it is not valid JSON: {first_line(error)}.")
        else:
            _add(reading, source, item, key)


def read_json(reading: Reading, name: str, data: bytes, key: str) -> None:
    """Add the entries of a list, or the only one; ``key`` is the prompt's.

    Raises:
        SettingError: the file is not valid JSON from some line on.
    """
    decoder = _decoder()
    line, counted = 1, 0
    try:
        text = data.decode()
        at = _skip(text, 0)
        listed = text[at : at + 1] == "["
        at = _skip(text, at + listed)
        while at < len(text) and not (listed and text[at] == "]"):
            line, counted = line + text.count("\n", counted, at), at
            item, at = decoder.raw_decode(text, at)
            _add(reading, f"{name}:{line}", item, key)
            at = _skip(text, at)
            if listed and text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif listed and text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        if listed and at >= len(text):
            raise json.JSONDecodeError("Expecting ']'", text, at)
        if listed and _skip(text, at + 1) < len(text):
            raise json.JSONDecodeError("Extra data", text, at + 1)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingError(f"{name}:{line}: it is not UTF-8 text; save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise SettingError(f"{name}:{error.lineno}: it is not valid JSON: {printable(error.msg)}.") from error
    except ValueError as error:
        raise SettingError(f"{name}:{line}: it is not valid JSON: {first_line(error)}.") from error
    except RecursionError as error:
        raise SettingError(f"{name}:{line}: it is nested too deeply.") from error


def _add(reading: Reading, source: str, item: Any, key: str) -> None:
    if is_deep(item, DEEPEST):
        reading.wrong(f"{source}: it is nested more than {DEEPEST} levels deep; flatten it.")
        return
    if isinstance(item, str):
        item = {key: item}
    if not isinstance(item, dict):
        reading.wrong(f"{source}: it is {shown(item)}; write an object such as {{{json.dumps(key)}: ...}}.")
        return
    if key not in item and "redux" not in item:
        other = next((name for name in islice(item, 100) if meant(name) == "prompt"), None)
        close = f"; did you mean {other!r}?" if other else did_you_mean(key, islice(item, 100)) if item else "."
        reading.wrong(
            f"{source}: {printable(key)} is missing{printable(close)} Give the prompt's key with --prompt-key."
        )
        return
    if isinstance(item.get(key), list) and item[key]:
        item[key] = item[key][0]
    reading.add_item(source, item, key)


def _skip(text: str, at: int) -> int:
    """The next position that is not white space."""
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not a number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{shown(key)} is given twice")
        found[key] = value
    return found
