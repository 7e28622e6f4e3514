"""The methods that tuning tries for a budget: plans, tolerances, thresholds, and fewer steps."""

from __future__ import annotations

from dataclasses import dataclass

from h2gen.cache import CacheConfig
from h2gen.evaluation import methods
from h2gen.evaluation.methods import Method
from h2gen.models.choices import evaluations
from h2gen.settings.profiles import label_of
from h2gen.settings.values import OFF

GUARDS = ("warmup_steps", "final_steps", "max_consecutive")


@dataclass(frozen=True)
class Candidate:
    """A method as measured on the search's prompts: its share of the blocks, and its mean 1 - SSIM."""

    method: Method
    share: float
    error: float


def plan_method(plan: str, solver: str) -> Method:
    """A plan with a solver."""
    steps = (len(plan) + 1) // 2 if solver == "heun" else len(plan)
    cache = CacheConfig(0, 0, forecast=1, plan=plan)
    return methods.tuned(label_of(cache, steps, solver), steps, cache, solver)


def adaptive_method(cache: CacheConfig, steps: int, solver: str = "own") -> Method:
    """Settings that adapt to each image: a tolerance, with a plan or without, or thresholds."""
    guards = [f"{name.replace('_', '-')} {getattr(cache, name)}" for name in GUARDS if getattr(cache, name)]
    label = label_of(cache, steps, solver) or ", ".join([cache.words, *guards])
    return methods.tuned(label, steps, cache, solver)


def fewer_steps(steps: int, solver: str, reference: int) -> Method:
    """Fewer steps of a solver, uncached; ``reference`` is the steps of the uncached run."""
    return methods.tuned(label_of(OFF, steps, solver), steps, OFF, solver, evaluations(steps, solver) / reference)
