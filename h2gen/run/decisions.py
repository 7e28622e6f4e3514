"""What an earlier run decided at each step, read from its trace to be done again without asking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from h2gen.cache.outcome import Outcome
from h2gen.cache.plan import check_plan, joined, letter_of
from h2gen.errors import SettingError

LARGEST = 16 * 2**20
"""Bytes of a trace; a step takes some 300."""


def read_decisions(path: Path) -> dict[str, Any]:
    """The settings that repeat a trace's decisions: ``plan``, and what else of its header they need.

    Raises:
        SettingError: the file cannot be read, or is no trace.
    """
    shown = f"The trace {str(path)!r}"
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise SettingError(f"{shown} cannot be read: {error.strerror or error}.") from error
    if len(data) > LARGEST:
        raise SettingError(f"{shown} is larger than {LARGEST // 2**20} MiB; no run has so many steps.")
    passes: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            item = json.loads(line)
            if "settings" in item:
                settings = dict(item["settings"])
            elif "step" in item:
                context = str(item["context"])
                passes[context] = passes.get(context, "") + letter_of(
                    Outcome(item["structure"]["outcome"]), Outcome(item["detail"]["outcome"])
                )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SettingError(f"{shown} is none that h2gen wrote: line {number} holds no step.") from error
    if not passes:
        raise SettingError(f"{shown} holds no steps; give one that --trace wrote.")
    found: dict[str, Any] = {"plan": check_plan(joined(passes.values()))}
    for name, kind in (("forecast", int), ("steps", int), ("solver", str)):
        if isinstance(settings.get(name), kind):
            found[name] = settings[name]
    return found
