"""What decides a step: thresholds (the paper), a tolerance, or a plan; and guards. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from h2gen.cache.policies.plan import Plan
from h2gen.cache.policies.thresholds import Thresholds
from h2gen.cache.policies.tolerance import Tolerance

if TYPE_CHECKING:
    from h2gen.cache.config import CacheConfig

__all__ = ["Plan", "Policy", "Thresholds", "Tolerance", "policy_of", "switched_off"]

Policy = Thresholds | Tolerance | Plan


def policy_of(config: CacheConfig) -> Policy:
    """The policy of a configuration: a tolerance, with or without a plan, takes precedence over the others."""
    if config.tolerance:
        return Tolerance(config)
    return Plan(config) if config.plan else Thresholds(config)


def switched_off(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are off because another policy was given: a plan, a tolerance or thresholds.

    A tolerance or a plan without a threshold means that there are no thresholds. A setting with a value in
    ``given`` is not among them.

    Args:
        given: settings that were given together; one that is missing or None was not given.
    """
    thresholds = given.get("tau1") is not None or given.get("tau2") is not None
    if not (given.get("plan") or given.get("tolerance") or thresholds):
        return {}
    off: dict[str, Any] = {"plan": "", "tolerance": 0.0}
    if not thresholds:
        off |= {"tau1": 0.0, "tau2": 0.0}
    return {name: value for name, value in off.items() if given.get(name) is None}
