"""Why the cache reused nothing in a picture, and which setting would have made it reuse something."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from h2gen.cache.config import USEFUL_TOLERANCE, CacheConfig
from h2gen.cache.outcome import Outcome
from h2gen.cache.policies.thresholds import suggest_thresholds
from h2gen.cache.trace import Trace
from h2gen.errors import H2GenError
from h2gen.settings.profiles import Choice, ProfileKey
from h2gen.settings.profiles.find import ProfileSearch
from h2gen.settings.table import TABLE
from h2gen.settings.values import Settings
from h2gen.wording import below_one

_LARGEST_THRESHOLD = 0.4
"""About twice the paper's: above it a step has little to do with the one whose result it would reuse."""
_TOO_FAR = (
    "The cache reused nothing: these steps are so far apart that skipping one would change the result too much. To be "
    "faster, use fewer --steps."
)


_HALF = 0.5
"""Tuned thresholds that run at most this share of the blocks are preferred: estimated ones aim at the same."""


def advice(trace: Trace, cache: CacheConfig, tuned: Callable[[], Choice | None] = lambda: None) -> str | None:
    """One or two sentences for the user; None if something was reused, or a plan forbade it.

    It suggests no value outside a setting's useful range: there, fewer steps are closer to the uncached picture.

    Args:
        trace: of the picture.
        cache: its settings.
        tuned: finds a profile's thresholds for such pictures; called only if the picture was made with thresholds.
    """
    summary, steps = trace.summary, trace.steps
    if summary.full < summary.steps or cache.plan_alone:
        return None
    errors = [step.error for step in steps if step.error is not None and math.isfinite(step.error)]
    if errors:
        enough = float(f"{1.05 * min(errors):.2g}")
        if enough > USEFUL_TOLERANCE[1]:
            return _TOO_FAR
        return f"The cache reused nothing; by its own estimate, --tolerance {enough:g} would skip a step."
    taus = [(n, tau) for n, tau in enumerate(suggest_thresholds(steps), 1) if tau is not None]
    choice = tuned() if taus else None
    if choice is not None:
        figures = choice.figures
        return (
            f"The cache reused nothing. The profile for such pictures suggests {options_of(choice.cache)}: "
            f"{figures.share:.0%} of the blocks, with a mean SSIM of {below_one(figures.ssim_mean, 4)}."
        )
    if taus:
        options = " ".join(f"--tau{n} {tau:g}" for n, tau in taus if tau <= _LARGEST_THRESHOLD)
        if not options:
            return _TOO_FAR
        return (
            f"The cache reused nothing. Judging by the changes that it measured, {options} would reuse some stages; "
            "'h2gen tune' finds better thresholds."
        )
    if any(step.structure.outcome is Outcome.GUARDED for step in steps):
        return (
            "The cache reused nothing: its guards kept every step full; take more steps, or fewer --warmup-steps and "
            "--final-steps."
        )
    return _TOO_FAR


def tuned_thresholds(
    settings: Settings, changing: Mapping[str, str], content_hash: Callable[[], str | None]
) -> Choice | None:
    """The thresholds of the profile that fits a picture: the closest that run about half of the blocks.

    Args:
        settings: of the picture.
        changing: what its model was loaded with, as ``LoadOptions.changing``; the rest changes only the time.
        content_hash: of its model; called only if everything else of a profile fits.

    Returns:
        None if no profile fits, or the one that does has no thresholds.
    """
    mode = "true" if settings.cfg > 1 else "plain"
    key = ProfileKey(
        "", "", settings.steps, settings.width, settings.height, mode, settings.shift, settings.frames or 0
    )
    try:
        profile = ProfileSearch(key, lambda: content_hash() or "", changing).exact()
    except (H2GenError, OSError):  # advice must not cost a finished picture
        return None
    choices = [] if profile is None else profile.of("thresholds")
    few = [choice for choice in choices if choice.figures.share <= _HALF]
    if few:
        return max(few, key=lambda choice: choice.figures.ssim_mean)
    return min(choices, key=lambda choice: choice.figures.share, default=None)


def options_of(cache: CacheConfig) -> str:
    """Thresholds as options of the command line, with what refines them."""
    found = []
    for row in TABLE:
        if row.of_cache:
            value = getattr(cache, row.name)
            if row.name in ("tau1", "tau2") or value != row.default:
                found.append(row.option if value is True else f"{row.option} {value}")
    return " ".join(found)
