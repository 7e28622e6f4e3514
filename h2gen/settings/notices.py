"""Notices about settings that can be used, but probably do not do what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from h2gen.cache.config import USEFUL_TOLERANCE, CacheConfig
from h2gen.cache.most_kept import keeps_residuals
from h2gen.models.load_options import CHANGING
from h2gen.models.quantization import NONE
from h2gen.settings.layers import Layers, Resolved
from h2gen.settings.presets import load_preset
from h2gen.settings.profiles import FEWEST_STEPS
from h2gen.settings.table import BY_NAME
from h2gen.settings.values import Settings
from h2gen.wording import plural

COMPILE_NOTICE = "With --compile the first steps are slow, and so are the first at another size."
"""What ``--compile`` costs, before it begins."""
_RECORDS = ("profile", "picture", "video", "trace")
"""Sources that hold settings as they were measured or used, not as somebody has just chosen them."""


def notices_about(settings: Settings, resolved: Mapping[str, Resolved], layers: Layers) -> Iterator[str]:
    """A line for each thing that the user should know before a picture is made.

    Args:
        settings: of the picture.
        resolved: where each of them comes from.
        layers: what the user gave.
    """
    tolerance, source = settings.cache.tolerance, resolved["tolerance"].source
    if tolerance > USEFUL_TOLERANCE[1] and not settings.cache.plan and source not in _RECORDS:
        low, high = USEFUL_TOLERANCE
        yield (
            f"A tolerance of {tolerance:g} is outside the useful range, {low:g} to {high:g}; expect a different "
            f"{settings.noun}. At that speed, fewer --steps are closer to the uncached one."
        )
    kept = resolved["cache_memory"]
    if kept.value not in (None, "device") and kept.source not in _RECORDS and not keeps_residuals(settings.cache):
        yield "--cache-memory has no effect here: only thresholds and the letters D, C and R of a plan keep residuals."
    changed = [name for name in ("lora", "image", "control", "controlnet", "redux") if getattr(settings, name)]
    if source == "published plan":  # a profile says what it was measured with
        changed += [name for name in CHANGING if BY_NAME[name].check(resolved[name].value) != NONE]
    if changed and source in ("profile", "published plan"):
        options = " or ".join(BY_NAME[name].option for name in changed)
        yield f"The {source} does not account for {options}; its figures are only a rough guide here."
    for _, values in layers:
        if values.get("preset") is not None:
            yield from _about_preset(str(values["preset"]), settings, _given(values))
            return


def _given(values: Mapping[str, object]) -> set[str]:
    return {name for name in ("tau1", "tau2", "tolerance", "plan") if values.get(name) is not None}


def _about_preset(name: str, settings: Settings, given: set[str]) -> Iterator[str]:
    """About a preset that was named together with the settings in ``given``."""
    preset = load_preset(name)
    meant, done = _policy(preset.config), _policy(settings.cache)
    if meant and meant != done and given:
        options = " and ".join(BY_NAME[each].option for each in sorted(given))
        yield f"{options} {'replaces' if len(given) == 1 else 'replace'} the {meant} of the preset {preset.name!r}."
    elif meant == "tolerance" and settings.steps <= FEWEST_STEPS:
        steps = plural(settings.steps, "step")
        yield f"With {steps} the preset {preset.name!r} skips few steps or none; it is meant for more."


def _policy(cache: CacheConfig) -> str:
    """What decides: ``plan``, ``tolerance``, both, or ``thresholds``; empty without a cache."""
    found = " and ".join(name for name in ("plan", "tolerance") if getattr(cache, name))
    return found or ("thresholds" if cache.enabled else "")
