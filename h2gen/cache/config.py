"""The settings of the cache: two thresholds, three guards, and policies that go beyond the paper."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from h2gen.arguments import fields_checked
from h2gen.cache.policies import switched_off
from h2gen.cache.policies.plan import check_plan
from h2gen.checks import Rule

_SHOWN = 60
"""Letters of a plan that are shown in a line."""
_PAPER = {"tau1": 0.15, "tau2": 0.22}
"""What the paper's authors run."""
_LEFT_OUT: Any = ...
"""Stands for a threshold whose value depends on the other settings; every CacheConfig has numbers."""
USEFUL_TOLERANCE = 0.001, 0.03
"""Below, nothing is skipped; above, the picture is a different one, and simply using fewer steps is closer."""
_THRESHOLD = Rule(float, least=0, advice="give a number from 0 (off) upwards, such as 0.15")
_COUNT = Rule(int, least=0, advice="give a whole number from 0 (off) upwards")
RULES: dict[str, Rule] = {
    "tau1": _THRESHOLD,
    "tau2": _THRESHOLD,
    "warmup_steps": _COUNT,
    "final_steps": _COUNT,
    "max_consecutive": _COUNT,
    "forecast": Rule(int, 0, 1, advice="give 0 (reuse the last result) or 1 (extrapolate from the last two)"),
    "plan": Rule(str),
    "tolerance": Rule(float, least=0, advice="give a number from 0 (off) upwards, such as 0.006"),
    "budget": Rule(bool),
    "hierarchy": Rule(str, choices=("forced", "checked")),
    "max_detail_age": _COUNT,
    "pfs": Rule(str, choices=("paper", "stable")),
    "cache_memory": Rule(str, choices=("device", "cpu", "bf16", "fp8")),
}
"""What each setting of ``CacheConfig`` may be."""


@fields_checked()
@dataclass(frozen=True)
class CacheConfig:
    """Settings of H2-Cache.

    A threshold of 0 switches its stage's check off: the structure stage is then computed at every step, the detail
    stage at every step whose structure is. With both at 0 the cache is off. Guards and policies go beyond the paper;
    left at their defaults they change nothing.

    Args:
        tau1: threshold of the structure stage (double-stream blocks), a relative change, >= 0. By default 0.15, or 0
            if there is a tolerance or a plan, and no other threshold.
        tau2: threshold of the detail stage (single-stream blocks), likewise; by default 0.22.
        warmup_steps: the first N steps of a trajectory are always full.
        final_steps: the last N steps of a trajectory are always full. Needs the schedule (see ``apply``).
        max_consecutive: at most N steps in a row without a full one.
        forecast: what is added when a stage is reused: 0 its last residual, as in the paper; 1 an extrapolation of
            its last two along a line in sigma, as far as the stage was seen to follow it, which takes the memory of one
            more (see ``h2gen.cache.forecast``).
        plan: what to do at each step, one letter per step: F full, D detail reused, C structure reused and detail
            computed, R both reused, S skipped: no block runs, the transformer's output is forecast from the last
            computed ones. Thresholds and guards are then ignored and nothing is measured. Spaces, commas and small
            letters are accepted. With true guidance all passes follow it, or each its own part (``FRRF/FRFR``). Empty
            means no plan. Together with a tolerance a plan can contain only F and S, and a step is skipped only if both
            allow it.
        tolerance: steps are skipped as long as each sequence of them displaces the picture by no more than this, in
            sigma times the velocity's size, as estimated from the error of the last forecast (see
            ``h2gen.cache.policies.tolerance``). With Euler's solver the next computed step corrects the skipped ones.
            Steps that are not skipped are left to the thresholds, or computed in full if these are 0. Needs the
            schedule (see ``apply``). 0 switches it off; useful values are 0.001 to 0.03.
        budget: compare the accumulated change with the threshold: the sum of the changes from step to step since the
            last computed step, instead of the change since that step.
        hierarchy: ``forced``, as in the paper: after a structure hit the detail stage is reused without a check; or
            ``checked``: it is probed and decides for itself.
        max_detail_age: a detail residual is used for at most N steps after it was computed, and is then recomputed
            without a check, which records call ``guarded``; 0 means no limit.
        pfs: how residuals are pooled before they are compared: as in the ``paper``, or ``stable``, over the picture's
            own rows and columns to a fixed number of cells, so that a threshold means the same at all sizes (see
            ``h2gen.cache.pfs_stable``). Thresholds do not carry over between the two.
        cache_memory: how the residuals are kept that reused stages add: ``device`` as they are; ``cpu`` in main memory,
            which changes no pixel, but copies them there and back; in ``bf16`` or ``fp8`` on the device, which takes a
            half or a quarter of float32 and changes the picture a little. Velocities, of which there is one number per
            latent, are always kept as they are.

    Raises:
        ArgumentError: there is no such setting.
        SettingError: a value is of the wrong type or out of its range.

    Source: arXiv 2510.27171.
    """

    tau1: float = _LEFT_OUT
    tau2: float = _LEFT_OUT
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
    cache_memory: str = "device"

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not _LEFT_OUT}
        for name, value in ((_PAPER | switched_off(given)) | given).items():
            object.__setattr__(self, name, value)
        for name, rule in RULES.items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))
        object.__setattr__(self, "plan", check_plan(self.plan, skips_only=self.tolerance > 0))

    @property
    def enabled(self) -> bool:
        """Whether any block can ever be skipped."""
        return self.tau1 > 0 or self.tau2 > 0 or self.tolerance > 0 or bool(self.plan)

    @property
    def plan_alone(self) -> bool:
        """Whether a plan alone decides every step, without a tolerance."""
        return bool(self.plan) and not self.tolerance

    @property
    def needs_time(self) -> bool:
        """Whether the time of every step must be known. The paper's policy does not need it."""
        return bool(self.plan or self.forecast)

    @property
    def policies(self) -> dict[str, Any]:
        """The settings beyond thresholds and guards that are not at their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: values[name][0] for name in POLICIES if values[name][0] != values[name][1]}

    @property
    def words(self) -> str:
        """The settings in words: ``tau1 0.1, tau2 0.2, forecast 1, budget``."""
        found = self.policies
        plan = found.pop("plan", "")
        parts = [f"plan {plan if len(plan) <= _SHOWN else plan[:_SHOWN] + '...'}"] if plan else []
        if not self.plan_alone and (self.tau1 or self.tau2 or not found):
            parts += [f"tau1 {self.tau1:g}", f"tau2 {self.tau2:g}"]
        return ", ".join(parts + [word_of(name, value) for name, value in found.items()])


POLICIES = ("forecast", "plan", "tolerance", "budget", "hierarchy", "max_detail_age", "pfs", "cache_memory")
"""The settings that came after thresholds and guards; a record without them is from before."""


def word_of(policy: str, value: Any) -> str:
    """A policy as the command line names it: ``budget``, ``forecast 1``."""
    name = policy.replace("_", "-")
    return name if value is True else f"{name} {value}"
