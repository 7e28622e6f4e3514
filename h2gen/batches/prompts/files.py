"""Reading prompt files of all kinds: their encoding and their lines."""

from __future__ import annotations

import codecs
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from h2gen.batches.prompts.entries import Reading
from h2gen.batches.prompts.from_json import read_json, read_json_lines
from h2gen.batches.prompts.from_table import read_table
from h2gen.batches.prompts.from_text import read_text
from h2gen.errors import SettingError
from h2gen.wording import printable

LARGEST_FILE = 2**30
LONGEST_LINE = 2**20
KINDS = {
    ".txt": "txt",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}
"""Kinds of prompt files by suffix."""
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks of encodings other than UTF-8, longer ones first."""


def read_prompts(
    paths: Iterable[str], prompt_key: str | None = None, stdin: Callable[[], bytes] = lambda: sys.stdin.buffer.read()
) -> Reading:
    """Read prompt files: those of ``KINDS``, or ``-`` for text, JSON Lines or a list in JSON on stdin.

    Raises:
        PromptFileError: there are very many errors; ``Reading.check`` raises it for fewer.
    """
    from h2gen.batches.prompts.from_yaml import read_yaml

    reading, key = Reading(), prompt_key or "prompt"
    paths = list(paths)
    names = Counter(Path(path).name for path in paths)
    for path in paths:
        before = len(reading.entries), len(reading.mistakes)
        # Folders distinguish files of the same name.
        name = printable(Path(path).name if names[Path(path).name] == 1 else path) or repr(path)
        reading.folder = None if path == "-" else Path(path).parent
        try:
            name, kind, data = _fetch(path, name, stdin)
            if kind == "yaml":
                read_yaml(reading, name, data)
            elif kind == "json":
                read_json(reading, name, data, key)
            elif kind == "jsonl":
                read_json_lines(reading, _lines(reading, name, data), key)
            elif kind in ("csv", "tsv"):
                read_table(reading, name, data, key, "\t" if kind == "tsv" else None)
            else:
                read_text(reading, _lines(reading, name, data))
        except SettingError as error:
            reading.wrong(str(error))
            continue
        if before == (len(reading.entries), len(reading.mistakes)):
            reading.wrong(f"{name}: there is no prompt in it; write one per line.")
    return reading


def _fetch(path: str, name: str, stdin: Callable[[], bytes]) -> tuple[str, str, bytes]:
    """A file's name for messages, its kind and its text as UTF-8 with line feeds."""
    if path == "-":
        data = _plain("stdin", stdin())
        start = data.lstrip()[:2]
        kind = "jsonl" if start[:1] == b"{" else "json" if start in (b"[{", b'["', b"[\n") else "txt"
        return "stdin", kind, data
    kind = KINDS.get(Path(path).suffix.lower(), "")
    try:
        if not Path(path).exists():
            hint = " To make a picture of a prompt, leave out the word 'batch'." if " " in path else ""
            raise SettingError(f"{name}: there is no such file; check the path.{hint}")
        if not kind:
            raise SettingError(f"{name}: prompt files end in .txt, .yaml, .jsonl, .json, .csv or .tsv.")
        if not Path(path).is_file():
            raise SettingError(f"{name}: it is not a file; give the prompt files in it.")
        if Path(path).stat().st_size > LARGEST_FILE:
            raise SettingError(f"{name}: it is larger than 1 GiB; split it.")
        return name, kind, _plain(name, Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise SettingError(f"{name}: it cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _plain(name: str, data: bytes) -> bytes:
    """The text of a file in UTF-8, without a byte-order mark, its lines ended by line feeds."""
    for mark, coding in _MARKS.items():
        if data.startswith(mark):
            try:
                data = data.decode(coding).encode()
            except UnicodeError as error:
                raise SettingError(f"{name}: it is not {coding.upper()} text; save the file as UTF-8.") from error
            break
    data = data.removeprefix(codecs.BOM_UTF8)
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def _lines(reading: Reading, name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """``FILE:LINE`` and the text of each line that is not blank."""
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
        start = end + 1
