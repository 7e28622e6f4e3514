"""``defaults.toml``, the file in a checkpoint's folder with its defaults, and the defaults of a folder without one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from h2gen.errors import ModelError
from h2gen.families import DEFAULT, FAMILIES, Family, ModelDefaults
from h2gen.toml import read_untrusted_toml
from h2gen.wording import did_you_mean, printable

__all__ = ["FILE", "ModelDefaults", "folder_defaults", "read_defaults"]

FILE = "defaults.toml"


def read_defaults(path: Path) -> ModelDefaults:
    """Read a ``defaults.toml``. Keys that it leaves out keep the values of ``ModelDefaults``, which are FLUX.1 [dev]'s.

    Raises:
        ModelError: the file cannot be read, or holds an unknown key or a value of the wrong type; the message names
            both.
    """
    where = repr(printable(str(path)))
    try:
        data = read_untrusted_toml(path)
    except ValueError as error:
        raise ModelError(f"{where} cannot be used: {printable(str(error))}; fix or remove it.") from error
    known = {field.name: field.default for field in fields(ModelDefaults) if field.default is not MISSING}
    for key, value in data.items():
        if key not in known:
            raise ModelError(f"{where} has the unknown key {key!r}{did_you_mean(key, known)}")
        whole = isinstance(known[key], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            kind = "a whole number" if whole else "a number"
            raise ModelError(f"{where}: {key} is {printable(repr(value))}; give {kind} such as {known[key]}.")
        if not (value >= 1 if whole else 0 <= value < float("inf")):
            raise ModelError(f"{where}: {key} is {value}; give {'1' if whole else '0'} or more.")
    return ModelDefaults(**{key: type(known[key])(value) for key, value in data.items()})


def folder_defaults(folder: Path) -> ModelDefaults:
    """The defaults of a local checkpoint: from its ``defaults.toml``, otherwise those of the model it resembles.

    Raises:
        ModelError: its ``defaults.toml`` cannot be used.
    """
    if os.path.exists(folder / FILE):
        return read_defaults(folder / FILE)
    config = read_config(folder / "transformer" / "config.json")
    family = FAMILIES.get(str(config.get("_class_name")), DEFAULT)
    return family.defaults(config, completed_index(read_config(folder / "model_index.json"), folder))


def completed_index(index: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A checkpoint's ``model_index.json``, with what only its scheduler tells.

    Args:
        index: read from the file.
        folder: of the checkpoint.
    """
    transformer = index.get("transformer")
    family = FAMILIES.get(str(transformer[-1])) if isinstance(transformer, list) and transformer else None
    if family is None or type(family).completed is Family.completed:
        return index
    return family.completed(index, read_config(folder / "scheduler" / "scheduler_config.json"))


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one: loading the model reports what is wrong with the file."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
