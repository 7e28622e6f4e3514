"""Prompt files in YAML. Only the nodes are read: an untrusted file builds no Python objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from h2gen.batches.prompts.entries import KEYS, NOTHING, RUN_WIDE, Given, Reading, first_line
from h2gen.errors import SettingError
from h2gen.wording import did_you_mean, printable, shown

if TYPE_CHECKING:
    import yaml

_SCALARS = ("str", "int", "float", "bool", "null")
_LONGEST_NUMBER = 100


def read_yaml(reading: Reading, name: str, data: bytes) -> None:
    """Add the entries of a file, and its errors.

    Raises:
        SettingError: the file as a whole cannot be used.
    """
    import yaml

    defaults: Mapping[str, Any] = NOTHING
    prompts: yaml.Node
    root = _compose(name, data)
    if root is None:
        return
    if isinstance(root, yaml.SequenceNode):
        prompts = root
    elif isinstance(root, yaml.MappingNode):
        before = len(reading.mistakes)
        top = _nodes(reading, name, root)
        for key, (node, _) in top.items():
            if key not in ("prompts", "defaults"):
                where = f"{name}:{node.start_mark.line + 1}"
                if key in RUN_WIDE:
                    reading.checked(where, {key: None})
                elif key in KEYS:
                    reading.wrong(f"{where}: {printable(key)} is a setting; put it under 'defaults:', for all prompts.")
                else:
                    hint = did_you_mean(key, ("prompts", "defaults"))
                    reading.wrong(f"{where}: there is no key {shown(key)}{hint} A file has 'defaults' and 'prompts'.")
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
        raise SettingError(f"{name}:{prompts.start_mark.line + 1}: prompts must be a list, with '-' before each.")
    shared = reading.checked(f"{name}:{root.start_mark.line + 1}", defaults, ": defaults")
    for node in prompts.value:
        source = f"{name}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.ScalarNode):
            reading.add(source, _text(node), NOTHING, shared)
        elif isinstance(node, yaml.MappingNode):
            given = _yaml_settings(reading, name, node, "an entry")
            if "prompt" not in given and "redux" not in given:
                reading.wrong(f"{source}: prompt is missing; give the entry a 'prompt:'.")
                continue
            reading.add(source, given.pop("prompt", ""), given, shared)
        else:
            reading.wrong(f"{source}: a prompt is text or a mapping with 'prompt:', not a list.")


def _compose(name: str, data: bytes) -> yaml.Node | None:
    import yaml

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
            f"{name}:{line}: it is not valid YAML: {printable(error.problem or 'it cannot be read')}."
        ) from error
    except yaml.YAMLError as error:
        raise SettingError(f"{name}:1: it is not valid YAML: {first_line(error)}.") from error
    except RecursionError as error:
        raise SettingError(f"{name}:1: it is nested too deeply.") from error
    _refuse_aliases(name, root)
    return root


def _refuse_aliases(name: str, root: yaml.Node | None) -> None:
    """Refuse aliases, which repeat nodes: a short file could expand to any length."""
    import yaml

    seen: set[int] = set()
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            line = node.start_mark.line + 1
            raise SettingError(f"{name}:{line}: an alias repeats what is written here; write it out in each place.")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting.extend(each for pair in node.value for each in pair)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)


def _nodes(reading: Reading, name: str, mapping: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """A mapping's keys with their nodes; a key that occurs twice is an error."""
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in mapping.value:
        text = str(key.value) if isinstance(key.value, str) else "?"
        if text in found:
            line = key.start_mark.line + 1
            reading.wrong(f"{name}:{line}: {printable(text)} is given twice; keep one.")
        found[text] = (key, value)
    return found


def _yaml_settings(reading: Reading, name: str, node: yaml.Node, what: str) -> Given:
    """A mapping of settings as Python values. Text stays as written: YAML would read 16:9 as a number."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise SettingError(f"{name}:{node.start_mark.line + 1}: {what} must be a mapping such as 'steps: 28'.")
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, (where, value) in _nodes(reading, name, node).items():
        places[key] = f"{name}:{where.start_mark.line + 1}"
        if key != "prompt" and key not in KEYS:
            values[key] = ""  # the value does not matter: the setting does not exist
            continue
        is_text = key == "prompt" or KEYS[key].rule.kind is str or KEYS[key].of_files
        if is_text and isinstance(value, yaml.ScalarNode):
            values[key] = _text(value)
            continue
        try:
            values[key] = _scalar(value)
        except (yaml.YAMLError, ValueError, ArithmeticError, LookupError):
            line = value.start_mark.line + 1
            reading.wrong(f"{name}:{line}: {printable(key)} has a value that cannot be used; give a plain one.")
    return Given({key: value for key, value in values.items() if value is not None}, places)


def _text(node: yaml.ScalarNode) -> str | None:
    empty = node.tag == "tag:yaml.org,2002:null"
    return None if empty else str(node.value)


def _scalar(node: yaml.Node) -> Any:
    """A scalar, or a list of scalars."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        # The time to build a number grows with the square of its length.
        if kind not in _SCALARS or (kind != "str" and len(node.value) > _LONGEST_NUMBER):
            raise ValueError
        return yaml.constructor.SafeConstructor().construct_object(node)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [_scalar(item) for item in node.value]
    raise ValueError
