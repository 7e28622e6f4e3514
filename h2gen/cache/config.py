"""What the cache is told: two thresholds, three guards, and policies that go beyond the paper."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import Any

from h2gen.cache.plan import check_plan
from h2gen.errors import SettingError
from h2gen.wording import shown

_SHOWN = 60
"""Letters of a plan that a line has room for."""
CHOICES = {"hierarchy": ("forced", "checked"), "pfs": ("paper", "stable")}
"""Settings that are one of some words."""


@dataclass(frozen=True)
class CacheConfig:
    """Settings of H2-Cache.

    A threshold of 0 switches its stage's check off: the structure stage is then computed at every step, the detail
    stage at every step whose structure is. With both at 0 the cache is off. Guards and policies go beyond the paper;
    left at their defaults they change nothing.

    Args:
        tau1: threshold of the structure stage (double-stream blocks), a relative change, >= 0.
        tau2: threshold of the detail stage (single-stream blocks), a relative change, >= 0.
        warmup_steps: the first N steps of a trajectory are always full.
        final_steps: the last N steps of a trajectory are always full.
        max_consecutive: at most N steps in a row without a full one.
        forecast: what is added where a stage is reused: 0 its last residual, as in the paper; 1 the straight line in
            sigma through its last two, which takes the memory of one more (see ``h2gen.cache.forecast``).
        plan: what to do at each step, a letter a step: F full, D detail reused, C structure reused and detail computed,
            R both reused, S skipped: no block runs, the transformer's output is forecast from the last computed ones.
            Thresholds and guards then have no say, and nothing is measured. Blanks, commas and small letters are
            taken; with true guidance all passes follow it, or a part each (``FRRF/FRFR``). Empty is no plan.
        tolerance: steps are skipped as long as each run of them displaces the picture by no more than this, in sigma
            times the velocity's size, by what the last computed velocities say of how the next will bend (see
            ``h2gen.cache.tolerance``). With Euler's solver what is skipped is made good for at the next computed step.
            What is not skipped is for the thresholds to decide, or computed in full where they are 0. Needs the
            pipeline. 0 switches it off; 0.0005 to 0.01 is what it is for.
        budget: changes are measured from step to step and added up since the last computed step, and the sum is held
            under the threshold, instead of the change since that step.
        hierarchy: ``forced``, as in the paper: after a structure hit the detail stage is reused unseen; or ``checked``:
            it is probed and decides for itself.
        max_detail_age: a detail residual is used for at most N steps after it was computed, and is then computed again
            without a check, which records call ``guarded``; 0 is for ever.
        pfs: how residuals are pooled before they are compared: as in the ``paper``, or ``stable``, over the picture's
            own rows and columns to a fixed number of cells, so that a threshold means the same at all sizes (see
            ``h2gen.cache.layout``). A threshold of the one is none for the other.

    Raises:
        SettingError: a value is of the wrong type or out of its range.

    Source: arXiv 2510.27171; 0.15 and 0.22 are what its authors run.
    """

    tau1: float = 0.15
    tau2: float = 0.22
    warmup_steps: int = 0
    final_steps: int = 0
    max_consecutive: int = 0
    forecast: int = 0
    plan: str = ""
    tolerance: float = 0.0
    budget: bool = False
    hierarchy: str = "forced"
    max_detail_age: int = 0
    pfs: str = "paper"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    raise _wrong(field.name, value, "; give true or false.")
            elif isinstance(field.default, str):
                if not isinstance(value, str):
                    raise _wrong(field.name, value, "; give it as text.")
            elif isinstance(field.default, float):
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise _wrong(field.name, value, ", which is not a number; give one such as 0.15.")
                if not 0 <= value <= sys.float_info.max:
                    raise _wrong(field.name, value, "; give a number from 0 (off) upwards, such as 0.15.")
                object.__setattr__(self, field.name, float(value))
            elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise _wrong(field.name, value, "; give a whole number from 0 (off) upwards.")
        if self.forecast > 1:
            raise _wrong("forecast", self.forecast, "; give 0 (reuse what was computed last) or 1 (a line).")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise _wrong(name, getattr(self, name), f"; it can be {' or '.join(known)}.")
        object.__setattr__(self, "plan", check_plan(self.plan))

    @property
    def enabled(self) -> bool:
        """Whether any block can ever be skipped."""
        return self.tau1 > 0 or self.tau2 > 0 or self.tolerance > 0 or bool(self.plan)

    @property
    def policies(self) -> dict[str, Any]:
        """The settings beyond thresholds and guards that are not at their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: values[name][0] for name in POLICIES if values[name][0] != values[name][1]}

    @property
    def words(self) -> str:
        """What decides, and what else is set, for people: ``tau1 0.1, tau2 0.2, forecast 1, budget``."""
        found = self.policies
        plan = found.pop("plan", "")
        parts = [f"tau1 {self.tau1:g}", f"tau2 {self.tau2:g}"] if self.tau1 or self.tau2 or not found else []
        if plan:
            parts = [f"plan {plan if len(plan) <= _SHOWN else plan[:_SHOWN] + '...'}"]
        return ", ".join(parts + [word_of(name, value) for name, value in found.items()])


def _wrong(name: str, value: Any, advice: str) -> SettingError:
    return SettingError(f"{name} is {shown(value)}{advice}")


POLICIES = ("forecast", "plan", "tolerance", "budget", "hierarchy", "max_detail_age", "pfs")
"""The settings that came after thresholds and guards; where they are not recorded there were none yet."""


def word_of(policy: str, value: Any) -> str:
    """A policy as the command line names it: ``budget``, ``forecast 1``."""
    name = policy.replace("_", "-")
    return name if value is True else f"{name} {value}"
