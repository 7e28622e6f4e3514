"""``--name``: file names made from a template, in characters that every file system accepts."""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Any

from h2gen.errors import SettingError
from h2gen.wording import did_you_mean

DEFAULT = "{index:04}-{slug}-{seed}"
LONGEST = 200
"""Bytes of a name without its suffix: file systems allow 255, and a number and a suffix are added."""

_SAMPLE: dict[str, Any] = {
    "index": 1,
    "slug": "a-cat",
    "seed": 7,
    "steps": 28,
    "width": 128,
    "height": 128,
    "guidance": 3.5,
    "cfg": 1.0,
    "tau1": 0.1,
    "tau2": 0.1,
    "tolerance": 0.002,
    "preset": "balanced",
    "model": "tiny",
    "id": "0a1b2c3d",
}
FIELDS = tuple(_SAMPLE)
_DISTINGUISHING = {"index", "seed", "id"}
_SPEC = re.compile(r"0?\d{0,2}(\.\d)?[dfgs]?")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def check_template(template: Any) -> str:
    """The template, if names can be made from it.

    Raises:
        SettingError: it contains a path, an unknown field, or a format beyond a number's width and precision.
    """
    if not isinstance(template, str) or not template.strip():
        raise SettingError(f"name is {template!r}; give text such as {DEFAULT!r}.")
    if "/" in template or "\\" in template or template.strip() in (".", ".."):
        raise SettingError(f"name is {template!r}, but it must be a file name, not a path; leave out the folder.")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SettingError(f"name is {template!r}, which is not a valid template: {error}.") from error
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if field not in FIELDS:
            raise SettingError(
                f"name is {template!r}; there is no field {field!r}{did_you_mean(field, FIELDS)} "
                f"Fields: {', '.join(FIELDS)}."
            )
        spec = spec or ""
        if conversion or not _SPEC.fullmatch(spec):
            raise SettingError(f"name is {template!r}; {{{field}}} only takes a width such as {{index:04}}.")
        try:
            format(_SAMPLE[field], spec)
        except ValueError as error:
            raise SettingError(f"name is {template!r}; {{{field}:{spec}}} does not fit its value.") from error
    return template


def distinguishes(template: str) -> bool:
    """Whether a prompt's seeds get different names."""
    return any(field in _DISTINGUISHING for _, field, _, _ in string.Formatter().parse(template))


def fill(template: str, values: Mapping[str, Any]) -> str:
    """The name, without suffix, from a template that ``check_template`` accepted."""
    return safe_name(template.format_map(values))


def safe_name(text: str) -> str:
    """The text as a file name that every file system accepts, and that cannot leave its folder."""
    kept = "".join(_safe(char) for char in unicodedata.normalize("NFC", text))
    name = re.sub(r"\s+", " ", kept).strip(" .").lstrip("-. ")
    while len(name.encode()) > LONGEST:
        name = name[: LONGEST if len(name) > LONGEST else -1]
    name = name.rstrip(" .") or "picture"
    return f"_{name}" if name.split(".")[0].rstrip(" ").lower() in _RESERVED else name


def is_spellable(text: str) -> bool:
    """Whether the file system can spell a name; almost all take any."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _safe(char: str) -> str:
    forbidden = char in '<>:"/\\|?*' or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn")
    return "-" if forbidden or not is_spellable(char) else char
