"""What tuning tries for a budget: plans, tolerances, and fewer steps of each solver, as methods of a comparison."""

from __future__ import annotations

from h2gen.cache import CacheConfig
from h2gen.evaluation import methods
from h2gen.evaluation.methods import Method
from h2gen.models.choices import evaluations
from h2gen.settings.profiles import label_of
from h2gen.settings.values import OFF


def plan_method(plan: str, solver: str) -> Method:
    """A plan with a solver."""
    steps = (len(plan) + 1) // 2 if solver == "heun" else len(plan)
    cache = CacheConfig(0, 0, forecast=1, plan=plan)
    return methods.tuned(label_of(cache, steps, solver), steps, cache, solver)


def adaptive_method(cache: CacheConfig, steps: int) -> Method:
    """Settings that adapt to each image, such as a tolerance."""
    return methods.tuned(cache.words, steps, cache, "own")


def fewer_steps(steps: int, solver: str, reference: int) -> Method:
    """Fewer steps of a solver, uncached; ``reference`` is the steps of the uncached run."""
    return methods.tuned(label_of(OFF, steps, solver), steps, OFF, solver, evaluations(steps, solver) / reference)


def is_adaptive(cache: CacheConfig) -> bool:
    """Whether the cache adapts to each image, instead of following a plan."""
    return cache.enabled and not cache.plan
