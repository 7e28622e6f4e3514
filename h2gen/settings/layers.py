"""Layers of settings: values and their sources, and how the layer with the highest precedence wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from h2gen.settings.inputs import InputFile

Layers = Sequence[tuple[str, Mapping[str, Any]]]
"""Sources, such as ``option`` or ``environment``, and the settings that each gives; the highest precedence first."""


@dataclass(frozen=True)
class Resolved:
    """A setting's value and its source: an option, the environment, the configuration, a preset, the model."""

    value: Any
    source: str


def merge(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Resolved]:
    """One value per setting, from the first layer that gives it; a value of None was not given."""
    resolved: dict[str, Resolved] = {}
    for source, values in layers:
        for name, value in values.items():
            if value is not None and name not in resolved:
                resolved[name] = Resolved(value, source)
    return resolved


def files_in(resolved: Mapping[str, Resolved], *names: str) -> list[tuple[InputFile, ...]]:
    """The files of these settings, which are found; none for a setting that was not given."""
    return [resolved[name].value if name in resolved else () for name in names]
