"""``--replay-decisions``: from the decisions in a trace to settings that repeat them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from h2gen.cache.outcome import Outcome
from h2gen.cache.policies.plan import check_plan, joined, letter_of
from h2gen.errors import SettingError
from h2gen.settings.resolve import IGNORED_BY_PLAN
from h2gen.settings.table import BY_NAME
from h2gen.settings.values import OFF

LARGEST = 16 * 2**20
"""Bytes of a trace; a step takes about 300."""
_CONTRADICT = ("plan", "tolerance", "preset", "tau1", "tau2", "no_cache")


@dataclass(frozen=True)
class Decisions:
    """The decisions that a trace records.

    Args:
        path: of the trace.
        settings: that repeat them: all of a cache, the number of steps and the solver.
        guided: whether each step had two passes, for true guidance.
    """

    path: Path
    settings: Mapping[str, Any]
    guided: bool

    def check_passes(self, cfg: float) -> None:
        """Check that a picture with this scale of true guidance has the same passes per step.

        Raises:
            SettingError: it has not; the plan would give a pass the decisions of another one.
        """
        if self.guided != (cfg > 1):
            was, advice = ("two passes", "give --cfg above 1") if self.guided else ("one pass", "give --cfg 1")
            now = "two" if cfg > 1 else "one"
            raise SettingError(
                f"The trace {str(self.path)!r} records {was} per step, and a picture with --cfg {cfg:g} has {now}; "
                f"{advice}."
            )


def decisions_of(path: Path, given: Mapping[str, Any]) -> Decisions:
    """The decisions of a trace.

    Args:
        path: of the trace.
        given: other options.

    Raises:
        SettingError: an option contradicts it or has no effect; or the file cannot be read, is not a trace, or not a
            complete one.
    """
    for name in _CONTRADICT:
        if given.get(name) is not None:
            raise SettingError(f"--replay-decisions and --{name.replace('_', '-')} contradict each other; give one.")
    for name in IGNORED_BY_PLAN:
        if given.get(name) is not None:
            raise SettingError(f"{BY_NAME[name].option} has no effect with --replay-decisions; give one.")
    return read_decisions(path)


def read_decisions(path: Path) -> Decisions:
    """As ``decisions_of``, without other options.

    If the header lacks a setting, the trace is older than it: residuals were reused as they were, with the
    model's own solver.

    Raises:
        SettingError: the file cannot be read, is not a trace, or not a complete one.
    """
    shown = f"The trace {str(path)!r}"
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise SettingError(f"{shown} cannot be read: {error.strerror or error}.") from error
    if len(data) > LARGEST:
        raise SettingError(f"{shown} is larger than {LARGEST // 2**20} MiB; no run has that many steps.")
    passes: dict[str, str] = {}
    settings: dict[str, Any] = {}
    whole = False
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            item = json.loads(line)
            if "settings" in item:
                settings = dict(item["settings"])
            elif "step" in item:
                context = str(item["context"])
                passes[context] = passes.get(context, "") + letter_of(
                    Outcome(item["structure"]["outcome"]), Outcome(item["detail"]["outcome"])
                )
            elif "summary" in item:
                whole = True
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if passes and number == len(lines) and not line.endswith(b"\n"):
                break  # cut off in the middle of a line
            raise SettingError(f"{shown} is not an h2gen trace: line {number} is not a step.") from error
    if not passes:
        raise SettingError(f"{shown} has no steps; give one that --trace wrote.")
    if not whole:
        raise SettingError(f"{shown} is incomplete; give one of a run that finished.")
    found = {**asdict(OFF), "plan": check_plan(joined(passes.values())), "solver": "own"}
    for name, kind in (("forecast", int), ("steps", int), ("solver", str)):
        if isinstance(settings.get(name), kind):
            found[name] = settings[name]
    return Decisions(path, found, guided="uncond" in passes)
