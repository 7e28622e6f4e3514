"""The most steps that a configuration could ever save something at, whatever the picture."""

from __future__ import annotations

from h2gen.cache.config import CacheConfig
from h2gen.cache.policies.guards import is_guarded
from h2gen.cache.policies.plan import plan_of


def most_reused(config: CacheConfig, steps: int) -> int:
    """How many of a picture's steps can reuse something or be skipped, at most.

    A tolerance needs two computed steps before it can estimate an error, and computes the last one.

    Args:
        config: of the cache.
        steps: of the picture, with a solver of one forward pass per step.
    """
    if config.plan_alone:
        return sum(letter != "F" for letter in plan_of(config.plan, 0))
    count = since_full = 0
    for step in range(steps if config.enabled else 0):
        by_threshold = step > 0 and bool(config.tau1 or config.tau2)
        by_tolerance = config.tolerance > 0 and 2 <= step < steps - 1
        if (by_threshold or by_tolerance) and not is_guarded(config, step, steps, since_full):
            count, since_full = count + 1, since_full + 1
        else:
            since_full = 0
    return count
