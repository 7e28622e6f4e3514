"""Reading prompt files: text and JSON Lines here, YAML in ``from_yaml``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from h2gen.batches.prompts.entries import KEYS, RUN_WIDE, Reading, first_line
from h2gen.errors import SettingError
from h2gen.sanitize import is_deep, sanitize
from h2gen.wording import did_you_mean, printable, shown

LARGEST_FILE = 2**30
LONGEST_LINE = 2**20
DEEPEST = 32
"""Levels of nesting in a line of JSON; anything deeper is useless as a note, and slow to read from the metadata."""


def read_prompts(
    paths: Iterable[str], prompt_key: str | None = None, stdin: Callable[[], bytes] = lambda: sys.stdin.buffer.read()
) -> Reading:
    """Read prompt files: ``.txt``, ``.yaml``, ``.jsonl``, or ``-`` for text or JSON Lines on stdin.

    Raises:
        PromptFileError: there are very many errors; ``Reading.check`` raises it for fewer.
    """
    from h2gen.batches.prompts.from_yaml import read_yaml

    reading = Reading()
    paths = list(paths)
    names = Counter(Path(path).name for path in paths)
    for path in paths:
        before = len(reading.entries), len(reading.mistakes)
        # Folders distinguish files of the same name.
        name = printable(Path(path).name if names[Path(path).name] == 1 else path) or repr(path)
        try:
            name, kind, data = _fetch(path, name, stdin)
            if kind == "yaml":
                read_yaml(reading, name, data)
            elif kind == "jsonl":
                _read_json_lines(reading, name, data, prompt_key or "prompt")
            else:
                _read_text(reading, name, data)
        except SettingError as error:
            reading.wrong(str(error))
            continue
        if before == (len(reading.entries), len(reading.mistakes)):
            reading.wrong(f"{name}: there is no prompt in it; write one per line.")
    return reading


def _fetch(path: str, name: str, stdin: Callable[[], bytes]) -> tuple[str, str, bytes]:
    """A file's name for messages, its kind and its bytes."""
    if path == "-":
        data = stdin()
        return "stdin", "jsonl" if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else "txt", data
    kind = {".txt": "txt", ".yaml": "yaml", ".yml": "yaml", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(
        Path(path).suffix.lower()
    )
    try:
        if not Path(path).exists():
            hint = " To make a picture of a prompt, leave out the word 'batch'." if " " in path else ""
            raise SettingError(f"{name}: there is no such file; check the path.{hint}")
        if kind is None:
            raise SettingError(f"{name}: prompt files end in .txt, .yaml or .jsonl.")
        if not Path(path).is_file():
            raise SettingError(f"{name}: it is not a file; give the prompt files in it.")
        if Path(path).stat().st_size > LARGEST_FILE:
            raise SettingError(f"{name}: it is larger than 1 GiB; split it.")
        return name, kind, Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise SettingError(f"{name}: it cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _lines(reading: Reading, name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """``FILE:LINE`` and the text of each line that is not blank."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    start, number = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        source = f"{name}:{number}"
        try:
            if end - start > LONGEST_LINE:
                reading.wrong(f"{source}: the line is longer than 1 MiB; shorten it.")
            elif text := data[start:end].decode().strip():
                yield source, text
        except UnicodeDecodeError:
            reading.wrong(f"{source}: it is not UTF-8 text; save the file as UTF-8.")
            if number == 1 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
                return  # UTF-16: every line would have the same error
        start = end + 1


def _read_text(reading: Reading, name: str, data: bytes) -> None:
    for source, text in _lines(reading, name, data):
        if not text.startswith("#"):
            reading.add(source, text)


def _read_json_lines(reading: Reading, name: str, data: bytes, key: str) -> None:
    for source, text in _lines(reading, name, data):
        try:
            item = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
        except RecursionError:
            reading.wrong(f"{source}: it is nested too deeply.")
            continue
        except ValueError as error:
            reading.wrong(f"{source}: it is not valid JSON: {first_line(error)}.")
            continue
        if is_deep(item, DEEPEST):
            reading.wrong(f"{source}: it is nested in more than {DEEPEST} levels; flatten it.")
            continue
        if isinstance(item, str):
            item = {key: item}
        if not isinstance(item, dict):
            reading.wrong(f"{source}: it is {shown(item)}; write an object such as {{{json.dumps(key)}: ...}}.")
            continue
        if key not in item:
            meant = did_you_mean(key, islice(item, 100)) if item else "."
            reading.wrong(f"{source}: {printable(key)} is missing{meant} Give the prompt's key with --prompt-key.")
            continue
        prompt = item.pop(key)
        if isinstance(prompt, list) and prompt:
            prompt = prompt[0]
        notes = {name: value for name, value in item.items() if name not in KEYS and name not in RUN_WIDE}
        given = {name: value for name, value in item.items() if name not in notes and value is not None}
        kept = sanitize(notes)
        reading.add(source, prompt, given, key=key, notes=json.dumps(kept) if kept else None)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not a number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{shown(key)} is given twice")
        found[key] = value
    return found
