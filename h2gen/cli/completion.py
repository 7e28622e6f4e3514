"""Completion of values in the user's shell: names of presets and models, and choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from h2gen.models.choices import DEVICES
from h2gen.settings.table import BY_NAME


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
    choices = ("auto", *DEVICES) if name == "device" else BY_NAME[name].rule.choices
    if not choices:
        return known.get(name)

    def chosen(incomplete: str) -> list[str]:
        return _beginning(choices, incomplete)

    return chosen


def in_shell(line: str) -> list[str]:
    """What completes the last word of a line of ``h2gen shell``."""
    from h2gen.generation.shell import COMMANDS, NAMES

    *before, word = line.split(" ")
    if not before:
        return _beginning([f":{command}" for command in COMMANDS], word) if word.startswith(":") else []
    if before in ([":set"], [":unset"]):
        return _beginning([name.replace("_", "-") for name in NAMES], word)
    if len(before) == 2 and before[0] == ":set" and (name := before[1].replace("-", "_")) in NAMES:
        if BY_NAME[name].rule.kind is bool:
            return _beginning(("on", "off"), word)
        complete = values_of(name)
        return [] if complete is None else complete(word)
    return []


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
