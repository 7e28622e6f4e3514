"""Options, environment, configuration, preset and the model's defaults become one plan, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import platformdirs

from h2gen.cache.config import CacheConfig
from h2gen.errors import SettingError
from h2gen.models.catalogue import WEIGHTS, Checkpoint, resolve
from h2gen.models.choices import DTYPES, OFFLOADS
from h2gen.models.defaults import ModelDefaults
from h2gen.settings import presets
from h2gen.settings import values as run_settings
from h2gen.settings.values import Resolved, Settings
from h2gen.toml import read_toml
from h2gen.wording import did_you_mean, shown

USER_DEFAULTS: dict[str, type] = {
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
    "solver": str,
    "guidance": float,
    "cfg": float,
    "negative": str,
    "max_sequence_length": int,
}
"""What can be set for good, in the configuration file or as ``H2GEN_...`` in the environment, and its type."""

CACHE = tuple(field.name for field in fields(CacheConfig))
_PICTURE = ("seed", "steps", "solver", "guidance", "cfg", "negative", "max_sequence_length")
_NOT_SETTINGS = ("no_cache", "count", "name")
_BUILT_IN = {
    "model": "tiny",
    "preset": presets.DEFAULT,
    "device": "auto",
    "dtype": "auto",
    "offload": "none",
    "out": ".",
    "negative": "",
    "solver": "own",
}


@dataclass(frozen=True)
class Request:
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

    @property
    def preset(self) -> str | None:
        """The preset that the cache's settings were taken from, or None without a cache."""
        return str(self.resolved["preset"].value) if "preset" in self.resolved else None


def config_file() -> Path:
    """The user's configuration."""
    return Path(platformdirs.user_config_dir("h2gen", appauthor=False)) / "config.toml"


Layers = Sequence[tuple[str, Mapping[str, Any]]]
"""Who gave which settings, the strongest first."""


def resolve_request(prompt: str, given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Request:
    """Resolve every setting of one picture.

    Args:
        prompt: what to paint.
        given: options of the command line, keys of ``USER_DEFAULTS``, of ``CacheConfig``, ``seed`` and ``no_cache``;
            None where not given.
        environ: where ``H2GEN_...`` is looked up.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    return request_from(prompt, [("option", given), *user_defaults(environ)])


def user_defaults(environ: Mapping[str, str] = os.environ) -> Layers:
    """What the user has set for good.

    Raises:
        SettingError: a value is of the wrong type, or the configuration cannot be read.
    """
    return [("environment", _environment(environ)), ("configuration", _configuration(config_file()))]


def request_from(prompt: str, layers: Layers) -> Request:
    """Resolve every setting from what people gave; below it lie presets, the model's defaults and what is built in.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    strongest = run_settings.resolve([*layers, ("built in", _BUILT_IN)])
    for name, known in (("dtype", ("auto", *DTYPES)), ("offload", OFFLOADS), ("format", run_settings.FORMATS)):
        if name in strongest and strongest[name].value not in known:
            raise SettingError(f"{name} is {shown(strongest[name].value)}; it can be {', '.join(known)}.")
    checkpoint = resolve(strongest["model"].value, _base(strongest))
    settings, resolved, rounded = resolve_settings(prompt, layers, checkpoint.defaults)
    notices = [rounded] if rounded else []
    if resolved["model"].source == "built in":
        notices.append(
            "Using the bundled model 'tiny', a very small Flux trained on emoji. "
            "For FLUX.1: --model dev, or set H2GEN_MODEL; 'h2gen models' lists more."
        )
    values = {name: setting.value for name, setting in resolved.items()}
    return Request(
        checkpoint=checkpoint,
        settings=settings,
        format=values.get("format"),
        resolved=resolved,
        notices=tuple(notices),
        **{name: values[name] for name in ("device", "dtype", "offload", "out")},
    )


def resolve_settings(
    prompt: str,
    layers: Layers,
    model_defaults: ModelDefaults,
    load_preset: Callable[[str], presets.Preset] = presets.load_preset,
) -> tuple[Settings, dict[str, Resolved], str | None]:
    """The settings of one picture, where each came from, and a notice where its size had to be rounded.

    A preset lies right below whoever named it: an option beside it is stronger, an option below it is not. The preset
    of a file is called by its name: its path is nobody's business who sees the picture.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    defaults = asdict(model_defaults)
    del defaults["size_multiple"]
    size = f"{defaults.pop('width')}x{defaults.pop('height')}"
    complete: list[tuple[str, dict[str, Any]]] = []
    closed = False  # somebody has said all of the cache: who is weaker has no say in it
    wanted = False
    for source, values in [*layers, ("model default", {**defaults, "size": size}), ("built in", _BUILT_IN)]:
        hidden = (*_NOT_SETTINGS, "preset") if closed else _NOT_SETTINGS
        complete.append((source, {name: value for name, value in values.items() if name not in hidden}))
        if values.get("no_cache") is False:
            wanted = True  # said by somebody stronger than whoever says no_cache below
        if closed:
            continue
        if values.get("no_cache") and not wanted:
            for name in (*CACHE, "preset"):
                if values.get(name) is not None:
                    raise SettingError(f"--no-cache and --{name.replace('_', '-')} contradict each other; give one.")
            closed = True
            complete.append((source, asdict(run_settings.OFF)))
        elif values.get("preset") is not None:
            preset = load_preset(values["preset"])
            closed = True
            complete[-1][1]["preset"] = preset.name
            complete.append((f"preset {preset.name}", asdict(preset.config)))
        else:
            closed = all(values.get(name) is not None for name in CACHE)
    _settle_plan(complete)
    resolved = run_settings.resolve(complete)
    if "seed" not in resolved:
        resolved["seed"] = Resolved(run_settings.random_seed(), "random")
    width, height, rounded = run_settings.parse_size(resolved["size"].value, model_defaults)
    resolved["size"] = Resolved(f"{width}x{height}", resolved["size"].source)
    chosen = {name: setting.value for name, setting in resolved.items()}
    settings = Settings(prompt=prompt, width=width, height=height, **{name: chosen[name] for name in _PICTURE})
    cache = CacheConfig(**{name: chosen[name] for name in CACHE})
    run_settings.check_length(cache.plan, settings.steps, settings.solver, _origin_of_plan(resolved))
    return replace(settings, cache=cache), resolved, rounded


def _origin_of_plan(resolved: Mapping[str, Resolved]) -> str:
    """Who gave the plan, where the user did not just type it."""
    source = resolved["plan"].source
    if source.startswith("preset "):
        named = resolved["preset"].source
        return f"{source}, named in the {named}" if named in ("environment", "configuration") else source
    return f"the {source}" if source in ("trace", "profile", "picture", "defaults") else ""


def _settle_plan(layers: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Who is strongest says what decides: a plan, a tolerance or thresholds. What it leaves out is not weaker ones'.

    Raises:
        SettingError: a plan beside something else, other than in a record of all settings of a cache.
    """
    for _, values in layers:
        plan, tolerance = values.get("plan"), values.get("tolerance")
        thresholds = [name for name in ("tau1", "tau2") if values.get(name) is not None]
        others = [*(["tolerance"] if tolerance else []), *thresholds]
        if plan and others and any(values.get(name) is None for name in CACHE):
            raise SettingError(f"--plan and --{others[0]} contradict each other; give one.")
        if not (plan or tolerance or thresholds):
            continue
        off: dict[str, Any] = {"plan": "", "tolerance": 0.0}
        if not thresholds:
            off |= {"tau1": 0.0, "tau2": 0.0}
        values.update({name: value for name, value in off.items() if values.get(name) is None})
        return


def _base(strongest: Mapping[str, Resolved]) -> str | None:
    """The base, unless it is a user_defaults setting and the model needs none."""
    base = strongest.get("base")
    if base is None or (base.source != "option" and not strongest["model"].value.lower().endswith(WEIGHTS)):
        return None
    return str(base.value)


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, kind in USER_DEFAULTS.items():
        variable = f"H2GEN_{name.upper()}"
        text = environ.get(variable)
        if text:
            try:
                values[name] = kind(text)
            except ValueError as error:
                number = "a whole number" if kind is int else "a number"
                given = shown(text)
                raise SettingError(f"{variable} is {given}, which is not {number}; correct or unset it.") from error
    return values


def _configuration(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = read_toml(path)
    except ValueError as error:
        raise SettingError(f"The configuration {str(path)!r} cannot be used: {error}.") from error
    for key, value in data.items():
        if key not in USER_DEFAULTS:
            raise SettingError(
                f"The configuration {str(path)!r} has an unknown key {shown(key)}{did_you_mean(key, USER_DEFAULTS)} "
                f"It takes {', '.join(USER_DEFAULTS)}."
            )
        kind = USER_DEFAULTS[key]
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            name = {str: "text", int: "a whole number", float: "a number"}[kind]
            raise SettingError(f"The configuration {str(path)!r}: {key} is {shown(value)}; it must be {name}.")
    return data
