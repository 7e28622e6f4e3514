"""From the arguments of ``Session.generate`` to settings: named like the command line's options, with its defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from h2gen.arguments import check_names
from h2gen.cache.config import CacheConfig
from h2gen.errors import ArgumentError, SettingError
from h2gen.models.catalogue import Checkpoint
from h2gen.models.load_options import LOAD_OPTIONS
from h2gen.output.save import Target, target_of
from h2gen.settings.layers import Layers
from h2gen.settings.model_options import check_options, check_strict
from h2gen.settings.notices import notices_about
from h2gen.settings.remarks import remarks_on
from h2gen.settings.resolve import resolve_settings
from h2gen.settings.seeds import parse_seeds
from h2gen.settings.speedup import GOAL, Goal, GoalResolver
from h2gen.settings.synonyms import meant_or_close
from h2gen.settings.table import BY_NAME, TABLE
from h2gen.settings.values import Settings

SAVING = ("out", "format", "no_metadata", "sidecar", "overwrite")
_MODEL = ("model", "base", "vae", "text_encoder", *LOAD_OPTIONS)
_SEVERAL = ("count", "batch_size")
_PICTURE = tuple(row.name for row in TABLE if row.in_picture and row.name != "prompt")
ARGUMENTS = ("size", *_PICTURE, "preset", "no_cache", "strict", *GOAL)
"""What ``Session.settings`` takes, besides the prompt and a ``CacheConfig``."""


CacheChoice = CacheConfig | Literal["default"] | None


@dataclass(frozen=True)
class Chosen:
    """The settings of a picture, the preset that they come from, and lines that the user should see."""

    settings: Settings
    preset: str | None
    notices: tuple[str, ...]


def choose(
    function: str,
    checkpoint: Checkpoint,
    prompt: str,
    cache: CacheChoice,
    given: Mapping[str, Any],
    more: Collection[str] = (),
) -> Chosen:
    """Resolve the arguments of a picture. User defaults (environment, configuration) are not read.

    Args:
        function: that they were given to.
        checkpoint: the model, whose defaults complete them.
        prompt: what to paint.
        cache: all settings of the cache; None is off.
        given: arguments by name; None if not given.
        more: names that the function has besides; they are ignored here.

    Raises:
        ArgumentError: there is no such argument.
        UsageError: a value cannot be used.
    """
    _check_names(function, given, (*ARGUMENTS, *more))
    options = {name: value for name, value in given.items() if value is not None and name in ARGUMENTS}
    strict = bool(options.pop("strict", False))
    goal = Goal(**{name: options.pop(name) for name in GOAL if name in options})
    if cache is None:
        options["no_cache"] = True
    layers: Layers = [("option", _one_size(_one_seed(options), checkpoint))]
    if isinstance(cache, CacheConfig):
        if goal or "preset" in options:
            raise SettingError(f"cache and {goal.option[2:] if goal else 'preset'} contradict each other; give one.")
        layers = [*layers, ("cache", asdict(cache))]
    notices: list[str] = []
    if goal:
        resolver = GoalResolver(goal, checkpoint)
        asked, layers = resolver.above(layers)
        notices += resolver.notices
    settings, resolved, rounded = resolve_settings(prompt, layers, checkpoint)
    if goal:
        settings = replace(settings, **asked)
    preset = str(resolved["preset"].value) if "preset" in resolved else None
    check_options(settings, checkpoint)
    notices += notices_about(settings, resolved, layers)
    remarks = list(remarks_on(prompt, settings, checkpoint))
    notices += [remark.text for remark in remarks]
    if strict:
        check_strict([remark.text for remark in remarks if remark.ignored])
    return Chosen(settings, preset, (*([rounded] if rounded else []), *notices))


@dataclass(frozen=True)
class Saving:
    """Where a picture is saved, and what is written besides the pixels: the arguments of ``Result.saved``."""

    target: Target
    metadata: bool
    sidecar: bool
    overwrite: bool


def saving_of(given: Mapping[str, Any], settings: Settings) -> Saving | None:
    """How a picture of these settings is saved; None if it is not.

    Raises:
        UsageError: it cannot be saved there, or something about the file is given without it.
    """
    out = given.get("out")
    if out is None:
        for name in SAVING:
            if given.get(name):
                raise SettingError(f"{name} has no effect without out; give out, or use the result's save().")
        return None
    place = BY_NAME["out"].check(str(out) if isinstance(out, Path) else out)
    target = target_of(place, given.get("format"), video=settings.frames is not None)
    return Saving(target, not given.get("no_metadata"), bool(given.get("sidecar")), bool(given.get("overwrite")))


def _check_names(function: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    for name in given:
        meant = None if name in known else meant_or_close(name, (*known, *_MODEL, *_SEVERAL))
        if meant in _MODEL:
            raise ArgumentError(f"{function}() has no argument {name!r}; give {meant!r} to h2gen.load().")
        if meant in _SEVERAL:
            raise ArgumentError(f"{function}() has no argument {name!r}; for several pictures, use h2gen.batch().")
    check_names(function, given, known, meant_or_close)


def _one_seed(options: dict[str, Any]) -> dict[str, Any]:
    """The options with their seed, which may be text, as a number."""
    if "seed" not in options:
        return options
    rest = {name: value for name, value in options.items() if name != "seed"}
    seeds = parse_seeds(options["seed"])
    if seeds is None:
        return rest  # which is a random one
    if len(seeds) > 1:
        raise SettingError(
            f"There are {len(seeds)} seeds, but only one picture is made; give one or use h2gen.batch()."
        )
    return {**rest, "seed": seeds[0]}


def _one_size(options: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """The options with width and height, of which the model supplies a missing one, as a size."""
    sides = {name: options[name] for name in ("width", "height") if name in options}
    if not sides:
        return options
    if "size" in options:
        raise SettingError("size and width or height contradict each other; give one.")
    defaults = checkpoint.defaults
    size = f"{sides.get('width', defaults.width)}x{sides.get('height', defaults.height)}"
    return {**{name: value for name, value in options.items() if name not in sides}, "size": size}
