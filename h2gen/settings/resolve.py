"""Options, environment, configuration, preset and the model's defaults become one request; nothing is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from h2gen.cache.config import CacheConfig
from h2gen.cache.policies import switched_off
from h2gen.checks import Rule
from h2gen.errors import SettingError
from h2gen.models.attention_names import check_package
from h2gen.models.catalogue import Checkpoint, needs_base, resolve
from h2gen.models.choices import split_device
from h2gen.models.load_options import LOAD_OPTIONS, LoadOptions, check_together
from h2gen.settings import presets
from h2gen.settings.controls import check_controls, with_redux_model
from h2gen.settings.devices import check_devices, check_picture
from h2gen.settings.editing import inputs_of
from h2gen.settings.layers import Layers, Resolved, merge
from h2gen.settings.model_options import check_options
from h2gen.settings.notices import COMPILE_NOTICE, notices_about
from h2gen.settings.remarks import remarks_on
from h2gen.settings.seeds import random_seed
from h2gen.settings.sizes import parse_size
from h2gen.settings.table import BY_NAME, MOST_TOKENS, TABLE
from h2gen.settings.user_defaults import called, user_defaults
from h2gen.settings.values import FIELDS, FILES, OFF, Settings, check_length
from h2gen.settings.video import with_frames

CACHE = tuple(row.name for row in TABLE if row.of_cache)
"""The settings of the cache."""

_OWN_FIELDS = tuple(name for name in FIELDS if name not in ("prompt", "width", "height"))
_NOT_RESOLVED = ("no_cache", "count", "name")
_BUILT_IN = {row.name: row.default for row in TABLE if row.default not in (None, ()) and not row.of_cache}

BUNDLED_NOTICE = (
    "Using the bundled model 'tiny', a very small Flux trained on emoji. "
    "For FLUX.1: --model dev, or set H2GEN_MODEL; 'h2gen models' lists more."
)
"""For those who have not chosen a model."""


@dataclass(frozen=True)
class Request:
    """Everything that is known before the model is loaded.

    ``resolved`` holds each setting's value and its source; ``notices`` are lines that the user should see, ``ignored``
    those of them that are about options that the model ignores.
    """

    checkpoint: Checkpoint
    settings: Settings
    load: LoadOptions
    out: str
    format: str | None
    resolved: Mapping[str, Resolved]
    notices: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    @property
    def preset(self) -> str | None:
        """The preset of the cache's settings, or None without a cache."""
        return str(self.resolved["preset"].value) if "preset" in self.resolved else None


def resolve_request(prompt: str, given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Request:
    """Resolve every setting of one picture.

    Args:
        prompt: the text.
        given: options of the command line by name; None if not given.
        environ: environment with the ``H2GEN_...`` variables.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    return request_from(prompt, [("option", given), *user_defaults(environ)])


def request_from(prompt: str, layers: Layers) -> Request:
    """Resolve every setting from what the user gave, then presets, the model's defaults and built-in defaults.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    check_texts(layers)
    given = merge([*layers, ("built in", _BUILT_IN)])
    checked = {
        name: BY_NAME[name].check(given[name].value, _called(name, given))
        for name in (*LOAD_OPTIONS, "format")
        if name in given
    }
    split_device(checked["device"])  # a wrong name is found even where nothing is loaded
    files = {name: given[name].value for name in ("vae", "text_encoder") if name in given}
    checkpoint = resolve(given["model"].value, _base(given), **files)
    settings, resolved, rounded = resolve_settings(prompt, layers, checkpoint)
    check_options(settings, checkpoint)
    notices = [rounded] if rounded else []
    if resolved["model"].source == "built in":
        notices.append(BUNDLED_NOTICE)
    notices += notices_about(settings, resolved, layers)
    remarks = list(remarks_on(prompt, settings, checkpoint))
    notices += [remark.text for remark in remarks]
    load = LoadOptions(**{name: checked[name] for name in LOAD_OPTIONS})
    check_together(load)
    check_devices(load, checkpoint)
    check_picture(load, settings, checkpoint)
    check_package(settings.attention)
    if load.compile:
        notices.append(COMPILE_NOTICE)
    return Request(
        checkpoint=checkpoint,
        settings=settings,
        format=checked["format"] if "format" in resolved else None,
        resolved=resolved,
        notices=tuple(notices),
        ignored=tuple(remark.text for remark in remarks if remark.ignored),
        load=load,
        out=resolved["out"].value,
    )


def resolve_settings(
    prompt: str,
    layers: Layers,
    checkpoint: Checkpoint,
    load_preset: Callable[[str], presets.Preset] = presets.load_preset,
) -> tuple[Settings, dict[str, Resolved], str | None]:
    """The settings of one picture, the source of each, and a notice if its size or its input had to be adapted.

    A preset comes right after the layer that names it: options given with it override it, and it overrides
    the layers below. A preset's file is recorded by its name, since its path is private.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    check_texts(layers)
    defaults = asdict(checkpoint.defaults)
    del defaults["size_multiple"]
    size = f"{defaults.pop('width')}x{defaults.pop('height')}"
    tokens = Rule(int, 1, max(MOST_TOKENS, checkpoint.defaults.max_sequence_length))
    resolved = merge(
        _with_cache(
            [*layers, ("model default", {**defaults, "size": size}), ("built in", _BUILT_IN)],
            load_preset,
        )
    )
    with_frames(checkpoint, resolved)
    if "seed" not in resolved:
        resolved["seed"] = Resolved(random_seed(), "random")
    name = "max_sequence_length"
    tokens.check(_called(name, resolved), resolved[name].value)
    width, height, rounded = parse_size(str(resolved["size"].value), checkpoint.defaults, _called("size", resolved))
    resolved["size"] = Resolved(f"{width}x{height}", resolved["size"].source)
    for name in FILES:
        if name == "redux_model":
            with_redux_model(checkpoint, resolved)  # before it is downloaded
        if name in resolved:
            files = BY_NAME[name].files.resolve(_called(name, resolved), resolved[name].value)
            resolved[name] = Resolved(files, resolved[name].source)
    inputs = inputs_of(checkpoint, resolved)
    if inputs is not None:
        resolved["image"] = Resolved(inputs.image, resolved["image"].source)
        resolved["size"] = Resolved(inputs.size, inputs.source)
    about = (*(() if inputs is None else inputs.notices), *check_controls(checkpoint, resolved))
    width, height = (int(side) for side in str(resolved["size"].value).split("x"))
    rounded = " ".join(filter(None, (rounded, *about))) or None
    resolved = {row.name: resolved[row.name] for row in TABLE if row.name in resolved}
    values = {name: setting.value for name, setting in resolved.items()}
    settings = Settings(
        prompt=prompt, width=width, height=height, **{name: values[name] for name in _OWN_FIELDS if name in values}
    )
    cache = CacheConfig(**{name: values[name] for name in CACHE})
    check_length(cache.plan, settings.steps, settings.solver, _origin_of_plan(resolved), settings.strength)
    return replace(settings, cache=cache), resolved, rounded


def resolve_cache(given: Mapping[str, Any], config: CacheConfig | None = None) -> CacheConfig:
    """The cache's settings alone, with the same meaning and the same default as those of a picture.

    Args:
        given: ``preset``, ``no_cache`` or settings of the cache; None if not given.
        config: settings below them.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    layers: Layers = [("option", given), ("cache", {} if config is None else asdict(config)), ("built in", _BUILT_IN)]
    check_texts(layers)
    resolved = merge(_with_cache(layers, presets.load_preset))
    return CacheConfig(**{name: resolved[name].value for name in CACHE})


def check_texts(layers: Layers) -> None:
    """Check that texts are texts: a Python caller may give anything.

    Raises:
        SettingError: one is not.
    """
    for _, values in layers:
        for name, value in values.items():
            if value is not None and name in BY_NAME and BY_NAME[name].rule.kind is str:
                BY_NAME[name].rule.check_kind(name, value)


def _with_cache(layers: Layers, load_preset: Callable[[str], presets.Preset]) -> list[tuple[str, dict[str, Any]]]:
    """The layers with the settings of presets and of ``no_cache`` among them.

    The first layer that sets the whole cache, by a preset, ``no_cache`` or all settings, hides what later layers
    say about it.
    """
    complete: list[tuple[str, dict[str, Any]]] = []
    whole = False
    cached = False
    for source, values in layers:
        hidden = (*_NOT_RESOLVED, "preset") if whole else _NOT_RESOLVED
        complete.append((source, {name: value for name, value in values.items() if name not in hidden}))
        if values.get("no_cache") is False:
            cached = True  # overrides a no_cache of the layers below
        if whole:
            continue
        if values.get("no_cache") and not cached:
            for name in (*CACHE, "preset"):
                if values.get(name) is not None:
                    raise SettingError(f"--no-cache and {BY_NAME[name].option} contradict each other; give one.")
            whole = True
            complete.append((source, asdict(OFF)))
        elif values.get("preset") is not None:
            preset = load_preset(values["preset"])
            whole = True
            complete[-1][1]["preset"] = preset.name
            complete.append((f"preset {preset.name}", {**asdict(preset.config), **preset.files}))
        else:
            whole = all(values.get(name) is not None for name in CACHE)
    _choose_policy(complete)
    return complete


IGNORED_BY_PLAN = ("warmup_steps", "final_steps", "max_consecutive", "budget", "hierarchy", "max_detail_age", "pfs")
"""Settings of the cache that have no effect with a plan, unless there is also a tolerance."""


def _choose_policy(layers: list[tuple[str, dict[str, Any]]]) -> None:
    """Let the first layer with a plan, a tolerance or thresholds switch off the others in the layers below.

    Raises:
        SettingError: a plan is combined with what contradicts it or has no effect, other than in a record of all
            settings of a cache.
    """
    for place, (source, values) in enumerate(layers):
        thresholds = [name for name in ("tau1", "tau2") if values.get(name) is not None]
        if values.get("plan") and any(values.get(name) is None for name in CACHE):
            ignored = () if values.get("tolerance") else IGNORED_BY_PLAN
            plan, *named = (
                BY_NAME[name].option if source == "option" else name for name in ("plan", *thresholds, *ignored)
            )
            if thresholds:
                raise SettingError(f"{plan} and {named[0]} contradict each other; give one.")
            for name, shown in zip(ignored, named, strict=True):
                if values.get(name) not in (None, BY_NAME[name].default):
                    raise SettingError(f"{shown} has no effect with {plan}; give one.")
        if values.get("plan") or values.get("tolerance") or thresholds:
            given = [name for name in ("plan", "tolerance") if values.get(name)] or ["thresholds"]
            layers.insert(place + 1, (f"off with {' and '.join(given)}", switched_off(values)))
            return


def _called(name: str, resolved: Mapping[str, Resolved]) -> str:
    """A setting's name as the user gave it: an option, a variable, a key of the configuration."""
    source = resolved[name].source
    if source in ("environment", "configuration"):
        return called(name, source)
    return BY_NAME[name].option if source == "option" else name


def _origin_of_plan(resolved: Mapping[str, Resolved]) -> str:
    """Where the plan comes from; empty if the user has just typed it."""
    source = resolved["plan"].source
    if source.startswith("preset "):
        named = resolved["preset"].source
        return f"{source}, named in the {named}" if named in ("environment", "configuration") else source
    return f"the {source}" if source in ("trace", "profile", "published plan", "picture", "video", "defaults") else ""


def _base(given: Mapping[str, Resolved]) -> str | None:
    """The base, unless it is a user default and the model needs none."""
    base = given.get("base")
    if base is None or (base.source != "option" and not needs_base(given["model"].value)):
        return None
    return str(base.value)
