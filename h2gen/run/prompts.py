"""Prompt files: text, YAML and JSON Lines become entries; every mistake in them is found before a model is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from h2gen.errors import PromptFileError, SettingError
from h2gen.run.settings import clean_prompt
from h2gen.words import did_you_mean, printable

if TYPE_CHECKING:
    import yaml

LARGEST_FILE = 2**30
LONGEST_LINE = 2**20

_NUMBER = (int, float)
KEYS: dict[str, tuple[type, ...]] = {
    "negative": (str,),
    "seed": (int, str, list),
    "count": (int,),
    "steps": (int,),
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
    "no_cache": (bool,),
    "name": (str,),
}
"""What an entry may say beside its prompt, and its types."""
RUN_WIDE = ("model", "base", "device", "dtype", "offload", "out", "format")
_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
_NOTHING: Mapping[str, Any] = MappingProxyType({})


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
    """What was found in prompt files: entries, and mistakes as lines that name file, line and key."""

    entries: list[Entry] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise what was found wrong.

        Raises:
            PromptFileError: there is a mistake, or no prompt at all.
        """
        if self.mistakes:
            shown = self.mistakes[:20]
            more = len(self.mistakes) - len(shown)
            raise PromptFileError("\n".join([*shown, *([f"... and {more} more."] if more else [])]))


def read_prompts(
    paths: Iterable[str], prompt_key: str | None = None, stdin: Callable[[], bytes] = lambda: sys.stdin.buffer.read()
) -> Reading:
    """Read prompt files: ``.txt``, ``.yaml``, ``.jsonl``, or ``-`` for text or JSON Lines on stdin."""
    reading = Reading()
    for path in paths:
        before = len(reading.entries), len(reading.mistakes)
        try:
            name, kind, data = _fetch(path, stdin)
            readers = {"txt": _read_text, "yaml": _read_yaml, "jsonl": _read_json_lines}
            readers[kind](reading, name, data, prompt_key or "prompt")
        except SettingError as error:
            reading.mistakes.append(str(error))
            continue
        if before == (len(reading.entries), len(reading.mistakes)):
            reading.mistakes.append(f"{name}: there is no prompt in it; write one a line.")
    return reading


def _fetch(path: str, stdin: Callable[[], bytes]) -> tuple[str, str, bytes]:
    """A file's name for messages, its kind and its bytes."""
    if path == "-":
        data = stdin()
        return "stdin", "jsonl" if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else "txt", data
    name = printable(Path(path).name) or repr(path)
    kind = {".txt": "txt", ".yaml": "yaml", ".yml": "yaml", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(
        Path(path).suffix.lower()
    )
    try:
        if not Path(path).exists():
            hint = " To paint a prompt, leave out the word 'batch'." if " " in path else ""
            raise SettingError(f"{name}: there is no such file.{hint}")
        if kind is None:
            raise SettingError(f"{name}: prompt files end in .txt, .yaml or .jsonl.")
        if not Path(path).is_file():
            raise SettingError(f"{name}: it is not a file.")
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
                reading.mistakes.append(f"{source}: the line is longer than 1 MiB; shorten it.")
            elif text := data[start:end].decode().strip():
                yield source, text
        except UnicodeDecodeError:
            reading.mistakes.append(f"{source}: it is not UTF-8 text; save the file as UTF-8.")
            if number == 1 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
                return  # UTF-16: each further line would say the same
        start = end + 1


def _read_text(reading: Reading, name: str, data: bytes, _key: str) -> None:
    for source, text in _lines(reading, name, data):
        if not text.startswith("#"):
            _add(reading, source, text, _NOTHING, _NOTHING)


def _read_json_lines(reading: Reading, name: str, data: bytes, key: str) -> None:
    for source, text in _lines(reading, name, data):
        try:
            item = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
        except RecursionError:
            reading.mistakes.append(f"{source}: it is nested too deeply.")
            continue
        except ValueError as error:
            reading.mistakes.append(f"{source}: it is no JSON: {_first_line(error)}.")
            continue
        if isinstance(item, str):
            item = {key: item}
        if not isinstance(item, dict):
            reading.mistakes.append(
                f"{source}: it is {_kind(item)}; write an object such as {{{json.dumps(key)}: ...}}."
            )
            continue
        if key not in item:
            meant = did_you_mean(key, item) if item else "."
            reading.mistakes.append(
                f"{source}: {printable(key)} is missing{meant} Name the prompt's key by --prompt-key."
            )
            continue
        prompt = item.pop(key)
        if isinstance(prompt, list) and prompt:
            prompt = prompt[0]
        notes = {name: value for name, value in item.items() if name not in KEYS and name not in RUN_WIDE}
        given = {name: value for name, value in item.items() if name not in notes and value is not None}
        _add(reading, source, prompt, given, _NOTHING, key, json.dumps(notes) if notes else None)


def _read_yaml(reading: Reading, name: str, data: bytes, _key: str) -> None:
    import yaml

    defaults: dict[str, Any] = {}
    prompts: yaml.Node
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingError(f"{name}:{line}: it is not UTF-8 text; save the file as UTF-8.") from error
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingError(
            f"{name}:{line}: it is no YAML: {printable(error.problem or 'it cannot be read')}."
        ) from error
    except yaml.YAMLError as error:
        raise SettingError(f"{name}:1: it is no YAML: {_first_line(error)}.") from error
    except RecursionError as error:
        raise SettingError(f"{name}:1: it is nested too deeply.") from error
    if root is None:
        return
    if isinstance(root, yaml.SequenceNode):
        prompts = root
    elif isinstance(root, yaml.MappingNode):
        before = len(reading.mistakes)
        top = _nodes(reading, name, root)
        for key, (node, _) in top.items():
            if key not in ("prompts", "defaults"):
                reading.mistakes.append(
                    f"{name}:{node.start_mark.line + 1}: there is no key {printable(key)!r}"
                    f"{did_you_mean(key, ('prompts', 'defaults'))} A file has 'defaults' and 'prompts'."
                )
        if "prompts" not in top:
            if len(reading.mistakes) > before:
                return
            raise SettingError(f"{name}:1: prompts is missing; write the prompts as a list under 'prompts:'.")
        prompts = top["prompts"][1]
        if "defaults" in top:
            defaults = _yaml_settings(reading, name, top["defaults"][1], "defaults")
    else:
        raise SettingError(f"{name}:1: write a list of prompts, or 'defaults:' and 'prompts:'.")
    if not isinstance(prompts, yaml.SequenceNode):
        raise SettingError(f"{name}:{prompts.start_mark.line + 1}: prompts must be a list, with a '-' before each.")
    shared = MappingProxyType(_checked(reading, f"{name}:{root.start_mark.line + 1}: defaults", defaults))
    for node in prompts.value:
        source = f"{name}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.ScalarNode):
            _add(reading, source, _text(node), _NOTHING, shared)
        elif isinstance(node, yaml.MappingNode):
            given = _yaml_settings(reading, name, node, "an entry")
            if "prompt" not in given:
                reading.mistakes.append(f"{source}: prompt is missing; give the entry a 'prompt:'.")
                continue
            _add(reading, source, given.pop("prompt"), given, shared)
        else:
            reading.mistakes.append(f"{source}: a prompt is text or a mapping with 'prompt:', not a list.")


def _nodes(reading: Reading, name: str, mapping: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """A mapping's keys with their nodes; a key that stands there twice is a mistake."""
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in mapping.value:
        text = str(key.value) if isinstance(key.value, str) else "?"
        if text in found:
            line = key.start_mark.line + 1
            reading.mistakes.append(f"{name}:{line}: {printable(text)} is given twice; keep one.")
        found[text] = (key, value)
    return found


def _yaml_settings(reading: Reading, name: str, node: yaml.Node, what: str) -> dict[str, Any]:
    """A mapping of settings as Python values. Text stays as it was written: YAML takes 16:9 for a number."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise SettingError(f"{name}:{node.start_mark.line + 1}: {what} must be a mapping such as 'steps: 28'.")
    values: dict[str, Any] = {}
    for key, (_, value) in _nodes(reading, name, node).items():
        if key != "prompt" and key not in KEYS:
            values[key] = ""  # whatever its value is, there is no such setting
            continue
        texts = KEYS.get(key) == (str,) or key == "prompt"
        if texts and isinstance(value, yaml.ScalarNode):
            values[key] = _text(value)
            continue
        try:
            values[key] = _scalar(value)
        except (yaml.YAMLError, ValueError, OverflowError):
            line = value.start_mark.line + 1
            reading.mistakes.append(
                f"{name}:{line}: {printable(key)} has a value that cannot be used; give a plain one."
            )
    return {key: value for key, value in values.items() if value is not None}


def _text(node: yaml.ScalarNode) -> str | None:
    empty = node.tag == "tag:yaml.org,2002:null"
    return None if empty else str(node.value)


def _scalar(node: yaml.Node) -> Any:
    """A scalar, or a list of scalars; nothing else is built from a stranger's file."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return yaml.constructor.SafeConstructor().construct_object(node)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [_scalar(item) for item in node.value]
    raise ValueError


def _add(
    reading: Reading,
    source: str,
    prompt: Any,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    key: str = "prompt",
    notes: str | None = None,
) -> None:
    """Take an entry, or note what is wrong with it."""
    before = len(reading.mistakes)
    if not isinstance(prompt, str):
        reading.mistakes.append(f"{source}: {printable(key)} is {_kind(prompt)}; give it as text.")
    else:
        try:
            prompt = clean_prompt(prompt)
        except SettingError as error:
            reading.mistakes.append(f"{source}: {error}")
    given = _checked(reading, source, given) if given else _NOTHING
    if len(reading.mistakes) == before:
        reading.entries.append(Entry(prompt, source, given, defaults, notes))


def _checked(reading: Reading, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings whose key and type are right; the others become mistakes."""
    right: dict[str, Any] = {}
    for key, value in given.items():
        if key in RUN_WIDE:
            option = f"--{key}"
            reading.mistakes.append(f"{source}: {key} is one for the whole run; give {option} on the command line.")
        elif key not in KEYS:
            reading.mistakes.append(f"{source}: there is no setting {printable(key)!r}{did_you_mean(key, KEYS)}")
        elif (isinstance(value, bool) and bool not in KEYS[key]) or not isinstance(value, KEYS[key]):
            wanted = " or ".join(_TYPE_NAMES[kind] for kind in KEYS[key] if not (kind is int and float in KEYS[key]))
            reading.mistakes.append(f"{source}: {key} is {_kind(value)}; give {wanted}.")
        elif key == "preset" and any(mark in str(value) for mark in ("/", "\\", ".toml")):
            reading.mistakes.append(
                f"{source}: preset is {_kind(value)}; a prompt file can name a preset, but not a file of one."
            )
        else:
            right[key] = value
    return right


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    shown = printable(str(value))
    return repr(shown if len(shown) <= 40 else shown[:40] + "...") if isinstance(value, str) else shown[:40]


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{printable(key)!r} is given twice")
        found[key] = value
    return found


def _first_line(error: Exception) -> str:
    return printable(str(error).split("\n")[0]).rstrip(".")
