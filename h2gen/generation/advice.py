"""Why the cache reused nothing in a picture, and which setting would have made it reuse something."""

from __future__ import annotations

import math

from h2gen.cache.config import USEFUL_TOLERANCE, CacheConfig
from h2gen.cache.outcome import Outcome
from h2gen.cache.policies.thresholds import suggest_thresholds
from h2gen.cache.trace import Trace

_LARGEST_THRESHOLD = 0.4
"""About twice the paper's: above it a step has little to do with the one whose result it would reuse."""
_TOO_FEW = "The cache reused nothing: there are too few steps to skip any. To be faster, use fewer --steps."


def advice(trace: Trace, cache: CacheConfig) -> str | None:
    """One sentence for the user; None if something was reused, or a plan forbade it.

    It suggests no value outside a setting's useful range: there, fewer steps are closer to the uncached picture.
    """
    summary, steps = trace.summary, trace.steps
    if summary.full < summary.steps or cache.plan:
        return None
    errors = [step.error for step in steps if step.error is not None and math.isfinite(step.error)]
    if errors:
        enough = float(f"{1.05 * min(errors):.2g}")
        if enough > USEFUL_TOLERANCE[1]:
            return _TOO_FEW
        return f"The cache reused nothing; by its own estimate, --tolerance {enough:g} would skip a step."
    taus = [(n, tau) for n, tau in enumerate(suggest_thresholds(steps), 1) if tau is not None]
    if taus:
        options = " ".join(f"--tau{n} {tau:g}" for n, tau in taus if tau <= _LARGEST_THRESHOLD)
        if not options:
            return _TOO_FEW
        return f"The cache reused nothing; by the changes it measured, {options} would reuse some stages."
    if any(step.structure.outcome is Outcome.GUARDED for step in steps):
        return (
            "The cache reused nothing: its guards kept every step full; take more steps, or fewer --warmup-steps and "
            "--final-steps."
        )
    return _TOO_FEW
