"""Completion of values in the user's shell: names of presets and models, and choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from h2gen.settings.table import BY_NAME

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


def presets(incomplete: str) -> list[str]:
    """The names of presets that begin so."""
    from h2gen.settings.presets import preset_names

    return _beginning(preset_names(), incomplete)


def models(incomplete: str) -> list[str]:
    """The aliases of models that begin so."""
    from h2gen.models.catalogue import CATALOGUE

    return _beginning(CATALOGUE, incomplete)


def values_of(name: str) -> Callable[[str], list[str]] | None:
    """What completes the value of a setting; None if it is free text, a number or a file.

    Where it finds nothing, the user's shell completes the names of files.
    """
    known: dict[str, Callable[[str], list[str]]] = {"preset": presets, "model": models, "base": models}
    choices = DEVICES if name == "device" else BY_NAME[name].rule.choices
    if not choices:
        return known.get(name)

    def chosen(incomplete: str) -> list[str]:
        return _beginning(choices, incomplete)

    return chosen


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
