"""Options, environment, configuration, preset and the model's defaults become one plan, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import platformdirs

from h2gen import presets
from h2gen.cache.config import CacheConfig
from h2gen.errors import SettingError
from h2gen.models.catalogue import WEIGHTS, Checkpoint, resolve
from h2gen.models.choices import DTYPES, OFFLOADS
from h2gen.run import settings as run_settings
from h2gen.run.settings import Resolved, Settings
from h2gen.toml import read_toml
from h2gen.words import did_you_mean

LASTING: dict[str, type] = {
    "model": str,
    "base": str,
    "preset": str,
    "device": str,
    "dtype": str,
    "offload": str,
    "out": str,
    "format": str,
    "size": str,
    "steps": int,
    "guidance": float,
    "cfg": float,
    "negative": str,
    "max_sequence_length": int,
}
"""What can be set for good, in the configuration file or as ``H2GEN_...`` in the environment, and its type."""

_CACHE = tuple(field.name for field in fields(CacheConfig))
_BUILT_IN = {
    "model": "tiny",
    "preset": presets.DEFAULT,
    "device": "auto",
    "dtype": "auto",
    "offload": "none",
    "out": ".",
    "negative": "",
}


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the model is loaded.

    ``resolved`` holds each setting's value and who gave it; ``notices`` are lines that the user should see.
    """

    checkpoint: Checkpoint
    settings: Settings
    device: str
    dtype: str
    offload: str
    out: str
    format: str | None
    resolved: Mapping[str, Resolved]
    notices: tuple[str, ...]


def config_file() -> Path:
    """The user's configuration."""
    return Path(platformdirs.user_config_dir("h2gen", appauthor=False)) / "config.toml"


def make_plan(prompt: str, given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Plan:
    """Resolve every setting.

    Args:
        prompt: what to paint.
        given: options of the command line: the keys of ``LASTING``, of ``CacheConfig``, ``seed`` and ``no_cache``;
            None where not given.
        environ: where ``H2GEN_...`` is looked up.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    options = {name: value for name, value in given.items() if name != "no_cache"}
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("option", options),
        ("environment", _environment(environ)),
        ("configuration", _configuration(config_file())),
    ]
    strongest = run_settings.resolve([*layers, ("built in", _BUILT_IN)])
    for name, known in (("dtype", ("auto", *DTYPES)), ("offload", OFFLOADS), ("format", run_settings.FORMATS)):
        if name in strongest and strongest[name].value not in known:
            raise SettingError(f"{name} is {strongest[name].value!r}; it can be {', '.join(known)}.")
    checkpoint = resolve(strongest["model"].value, _base(strongest))
    defaults = asdict(checkpoint.defaults)
    del defaults["size_multiple"]

    if given.get("no_cache"):
        contradicting = [name for name in (*_CACHE, "preset") if given.get(name) is not None]
        if contradicting:
            raise SettingError(
                f"--no-cache and --{contradicting[0].replace('_', '-')} contradict each other; give one."
            )
        layers.append(("option", asdict(run_settings.OFF)))
    else:
        preset = presets.load_preset(strongest["preset"].value)
        layers.append((f"preset {preset.name}", asdict(preset.config)))

    size = f"{defaults.pop('width')}x{defaults.pop('height')}"
    layers += [("model default", {**defaults, "size": size}), ("built in", _BUILT_IN)]
    resolved = run_settings.resolve(layers)
    if "seed" not in resolved:
        resolved["seed"] = Resolved(run_settings.random_seed(), "random")
    if given.get("no_cache"):
        del resolved["preset"]

    width, height, rounded = run_settings.parse_size(resolved["size"].value, checkpoint.defaults)
    resolved["size"] = Resolved(f"{width}x{height}", resolved["size"].source)
    values = {name: setting.value for name, setting in resolved.items()}
    settings = Settings(
        prompt=prompt,
        width=width,
        height=height,
        cache=CacheConfig(**{name: values[name] for name in _CACHE}),
        **{name: values[name] for name in ("seed", "steps", "guidance", "cfg", "negative", "max_sequence_length")},
    )
    notices = [rounded] if rounded else []
    if resolved["model"].source == "built in":
        notices.append(
            "Using the bundled model 'tiny', a small sketch trained on emoji. "
            "For FLUX.1: --model dev, or set H2GEN_MODEL; 'h2gen models' lists more."
        )
    return Plan(
        checkpoint=checkpoint,
        settings=settings,
        format=values.get("format"),
        resolved=resolved,
        notices=tuple(notices),
        **{name: values[name] for name in ("device", "dtype", "offload", "out")},
    )


def _base(strongest: Mapping[str, Resolved]) -> str | None:
    """The base, unless it is a lasting setting and the model needs none."""
    base = strongest.get("base")
    if base is None or (base.source != "option" and not strongest["model"].value.lower().endswith(WEIGHTS)):
        return None
    return str(base.value)


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, kind in LASTING.items():
        variable = f"H2GEN_{name.upper()}"
        text = environ.get(variable)
        if text:
            try:
                values[name] = kind(text)
            except ValueError as error:
                number = "a whole number" if kind is int else "a number"
                raise SettingError(f"{variable} is {text!r}, which is not {number}; correct or unset it.") from error
    return values


def _configuration(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = read_toml(path)
    except ValueError as error:
        raise SettingError(f"The configuration {str(path)!r} cannot be used: {error}.") from error
    for key, value in data.items():
        if key not in LASTING:
            raise SettingError(
                f"The configuration {str(path)!r} has an unknown key {key!r}{did_you_mean(key, LASTING)} "
                f"It takes {', '.join(LASTING)}."
            )
        kind = LASTING[key]
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            name = {str: "text", int: "a whole number", float: "a number"}[kind]
            raise SettingError(f"The configuration {str(path)!r}: {key} is {value!r}; it must be {name}.")
    return data
