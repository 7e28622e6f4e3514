"""What tuning tries for a budget: plans, tolerances, and fewer steps of each solver, as methods of a comparison."""

from __future__ import annotations

from h2gen.cache import CacheConfig
from h2gen.evaluation import methods
from h2gen.evaluation.methods import Method
from h2gen.models.choices import SOLVERS, evaluations
from h2gen.settings.values import OFF


def plan_method(plan: str, solver: str) -> Method:
    """A plan with a solver."""
    steps, unit = ((len(plan) + 1) // 2, "passes") if solver == "heun" else (len(plan), "steps")
    words = {"S": "skipped", "R": "reused", "D": "with the detail reused", "C": "with the structure reused"}
    others = [f"{plan.count(letter)} {outcome}" for letter, outcome in words.items() if letter in plan]
    label = f"{plan.count('F')} of {len(plan)} {unit}, {', '.join(others)}{_by(solver)}"
    return methods.tuned(label, steps, CacheConfig(0, 0, forecast=1, plan=plan), solver)


def adaptive_method(cache: CacheConfig, steps: int) -> Method:
    """Settings that adapt to each image, such as a tolerance."""
    return methods.tuned(cache.words, steps, cache, "own")


def fewer_steps(steps: int, solver: str, reference: int) -> Method:
    """Fewer steps of a solver, uncached; ``reference`` is the steps of the uncached run."""
    return methods.tuned(
        f"{methods.steps_label(steps)}{_by(solver)}", steps, OFF, solver, evaluations(steps, solver) / reference
    )


def is_adaptive(cache: CacheConfig) -> bool:
    """Whether the cache adapts to each image, instead of following a plan."""
    return cache.enabled and not cache.plan


def _by(solver: str) -> str:
    return "" if solver == "own" else f", {SOLVERS[solver]}"
