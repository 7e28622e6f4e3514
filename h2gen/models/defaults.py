"""What a model is called with where the user says nothing, and the file that says so beside a checkpoint."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from h2gen.errors import ModelError
from h2gen.toml import read_toml
from h2gen.wording import did_you_mean, printable

FILE = "defaults.toml"


@dataclass(frozen=True)
class ModelDefaults:
    """What a model was made for.

    Args:
        width, height: pixels.
        steps: denoising steps.
        guidance: guidance scale that a guidance-distilled model takes as an input.
        cfg: scale of true classifier-free guidance; 1 is off.
        max_sequence_length: tokens of text that the model sees.
        size_multiple: pixels; width and height are multiples of it.
    """

    width: int = 1024
    height: int = 1024
    steps: int = 50
    guidance: float = 3.5
    cfg: float = 1.0
    max_sequence_length: int = 512
    size_multiple: int = 16


DEV = ModelDefaults()
SCHNELL = ModelDefaults(steps=4, guidance=0.0, max_sequence_length=256)
KREA = ModelDefaults(steps=28, guidance=4.5)
KLEIN = ModelDefaults(steps=4, guidance=1.0)
FLUX2_DEV = ModelDefaults(guidance=4.0)


def read_defaults(path: Path) -> ModelDefaults:
    """Read a ``defaults.toml``; a key that is not there keeps FLUX.1 [dev]'s value.

    Raises:
        ModelError: the file cannot be read, or holds an unknown key or a value of the wrong type; it names both.
    """
    where = repr(printable(str(path)))
    try:
        data = read_toml(path)
    except ValueError as error:
        raise ModelError(f"{where} cannot be used: {printable(str(error))}; mend or remove it.") from error
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
    """A local checkpoint's defaults: what its ``defaults.toml`` says, else those of the model it resembles.

    Raises:
        ModelError: its ``defaults.toml`` cannot be used.
    """
    if (folder / FILE).exists():
        return read_defaults(folder / FILE)
    transformer = _read(folder / "transformer" / "config.json")
    if transformer.get("_class_name") == "Flux2Transformer2DModel":
        return KLEIN if _read(folder / "model_index.json").get("is_distilled") else FLUX2_DEV
    return DEV if transformer.get("guidance_embeds", True) else SCHNELL


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one: what is wrong with the file is said when the model is loaded."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
