"""Prompt files in plain text: one prompt per line, with options as sd-scripts and AUTOMATIC1111 write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from h2gen.batches.prompts.entries import KEYS, RUN_WIDE, Reading
from h2gen.errors import SettingError
from h2gen.settings.synonyms import meant, meant_or_close

_OPTION = re.compile(
    r"""(?<!\S)--(?P<name>[A-Za-z][\w-]*)(?:=|\ |$)"""
    r"""(?P<value>"(?:[^"\\]|\\.)*"(?=\ |$)|'[^']*'(?=\ |$)|.*?)(?=(?:(?<=\ )|\ )--[A-Za-z]|\ ?$)"""
)
"""An option and its value, which ends at the next option: sd-scripts puts no quotes around text."""

_READ = {
    # sd-scripts; its letters for FLUX.1
    "n": "negative",
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "steps",
    "l": "cfg",
    "c": "cfg",
    "g": "guidance",
    # AUTOMATIC1111
    "prompt": "prompt",
    "negative_prompt": "negative",
    "cfg_scale": "cfg",
    "n_iter": "count",
}
"""Options of other programs that mean the same here; ours are read, too."""


def read_text(reading: Reading, lines: Iterable[tuple[str, str]]) -> None:
    """Add the prompt of each line, given with its ``FILE:LINE``, unless it is a comment."""
    for source, text in lines:
        if not text.startswith("#"):
            _read_line(reading, source, " ".join(text.split()))


def _read_line(reading: Reading, source: str, text: str) -> None:
    options = list(_OPTION.finditer(text))
    if not options:
        reading.add(source, text)
        return
    prompt = text[: options[0].start()].strip()
    given: dict[str, Any] = {}
    for option in options:
        name, value = option["name"], _unquoted(option["value"].strip())
        key = _key(name)
        if key is None:
            reading.wrong(f"{source}: {_unknown(name)}")
        elif key == "prompt" and not prompt:
            prompt = value
        elif key == "prompt" or (key in given and not KEYS[key].of_files):
            reading.wrong(f"{source}: --{name} sets {key} again; keep one.")
        else:
            try:
                found = parsed(key, value, f"--{name}")
                given[key] = [*given[key], *found] if key in given else found
            except SettingError as error:
                reading.wrong(f"{source}: {error}")
    reading.add(source, prompt, {key: value for key, value in given.items() if value is not None})


def parsed(key: str, text: str, called: str) -> Any:
    """The value of a setting written as text; None if it says that there is none.

    Args:
        key: one of ``KEYS``.
        text: without quotes.
        called: what the user called it, for the message.

    Raises:
        SettingError: it is not a value of the setting.
    """
    row = KEYS[key]
    if (key == "seed" and text == "-1") or (key == "negative" and text in ("", "-")):
        return None  # elsewhere a random seed, and no negative prompt
    if row.rule.kind is bool and not text:
        return True
    return text if key == "seed" else row.parse(text, called)  # seeds have their own syntax


def _key(name: str) -> str | None:
    ours = name.replace("-", "_")
    return ours if ours in KEYS else _READ.get(ours.lower())


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value


def _unknown(name: str) -> str:
    """Why an option is not read, and what may be meant."""
    shared = meant(name, RUN_WIDE)
    if shared is not None:
        return f"--{name} applies to the whole run; give --{shared} on the command line."
    close = meant_or_close(name, KEYS) if len(name) > 1 else None
    hint = f"did you mean --{close.replace('_', '-')}?" if close else "leave it out."
    return f"there is no option --{name}; {hint} To use these words as a prompt, put them in a .jsonl or .yaml file."
