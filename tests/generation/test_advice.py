"""Advice about a cache that reused nothing: values in the useful range of a setting, otherwise only fewer steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from h2gen.cache import CacheConfig, Outcome, StageRecord, StepRecord, Trace
from h2gen.generation.advice import advice, tuned_thresholds
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey, user_folder, write_profile
from h2gen.settings.values import Settings

TOLERANCE = CacheConfig(0, 0, tolerance=0.002)
THRESHOLDS = CacheConfig(0.01, 0.01)


def trace(
    *,
    errors: tuple[float | None, ...] = (),
    changes: tuple[float | None, ...] = (),
    outcome: Outcome = Outcome.COMPUTED,
) -> Trace:
    """A trace of full steps with these errors, or with these changes of both stages."""
    made = Trace()
    for number, (error, change) in enumerate(
        zip(errors or [None] * len(changes), changes or [None] * len(errors), strict=True)
    ):
        stage = StageRecord(change, outcome)
        made.steps.append(StepRecord(0, number, "cond", 500, 0.5, stage, stage, 12, 12, 0.1, error=error))
    return made


def test_a_tolerance_that_would_have_skipped_a_step_is_named() -> None:
    assert advice(trace(errors=(None, 0.0068, 0.02)), TOLERANCE) == (
        "The cache reused nothing; by its own estimate, --tolerance 0.0071 would skip a step."
    )


def test_a_plan_with_a_tolerance_that_skipped_nothing_is_told_what_would_have() -> None:
    made = trace(errors=(None, 0.0068, None))
    assert "--tolerance 0.0071" in (advice(made, CacheConfig(0, 0, plan="FSF", tolerance=0.002)) or "")
    assert advice(made, CacheConfig(0, 0, plan="FSF")) is None


@pytest.mark.parametrize(
    ("made", "cache"),
    [
        (trace(errors=(None, 0.105, 0.3)), TOLERANCE),
        (trace(changes=(None, 0.6, 0.7)), THRESHOLDS),
        (trace(changes=(None,)), THRESHOLDS),
    ],
    ids=["tolerance", "thresholds", "one step"],
)
def test_fewer_steps_are_advised_where_only_a_ruinous_setting_would_skip_one(made: Trace, cache: CacheConfig) -> None:
    assert advice(made, cache) == (
        "The cache reused nothing: these steps are so far apart that skipping one would change the result too much. To "
        "be faster, use fewer --steps."
    )


def tuned(share: float, **more: Any) -> Choice:
    cache = CacheConfig(0.1, 0.15, **more)
    return Choice("x", 8, "own", cache, Figures(share, 1.0, 1 / share, share, share, 40.0, 35.0))


def test_thresholds_of_a_profile_come_before_estimates() -> None:
    made = trace(changes=(None, 0.11, 0.12, 0.13))
    found = tuned(0.48, forecast=1, budget=True, warmup_steps=2)
    assert advice(made, THRESHOLDS, lambda: found) == (
        "The cache reused nothing. The profile for such pictures suggests --tau1 0.1 --tau2 0.15 --warmup-steps 2 "
        "--forecast 1 --budget: 48% of the blocks, with a mean SSIM of 0.4800."
    )
    assert str(advice(made, THRESHOLDS)).endswith(" would reuse some stages; 'h2gen tune' finds better thresholds.")


def test_the_profile_that_fits_gives_its_closest_thresholds_of_half_the_blocks() -> None:
    settings = Settings("a cat", 1, 64, 64, 8)
    key = ProfileKey("mine", "ab" * 32, 8, 64, 64, "plain")
    plan = replace(tuned(0.45), cache=CacheConfig(0, 0, plan="FFFFSFSF"))
    choices = (tuned(0.3), tuned(0.4), plan, tuned(0.8))
    assert tuned_thresholds(settings, {}, lambda: "ab" * 32) is None
    write_profile(Profile(user_folder() / "p.toml", key, choices, {}))
    found = tuned_thresholds(settings, {}, lambda: "ab" * 32)
    assert found is not None and found.figures.share == 0.4
    assert tuned_thresholds(settings, {}, lambda: "cd" * 32) is None
    assert tuned_thresholds(replace(settings, steps=9), {}, lambda: "ab" * 32) is None
    write_profile(Profile(user_folder() / "p.toml", key, (plan, tuned(0.8), tuned(0.7)), {}))
    found = tuned_thresholds(settings, {}, lambda: "ab" * 32)
    assert found is not None and found.figures.share == 0.7


def test_thresholds_are_named_as_far_as_they_are_sound() -> None:
    assert "--tau1 0.13 --tau2 0.13 would" in str(advice(trace(changes=(None, 0.11, 0.12, 0.13)), THRESHOLDS))


def test_guards_are_named_where_they_kept_every_step_full() -> None:
    made = trace(changes=(None, None), outcome=Outcome.GUARDED)
    assert "fewer --warmup-steps" in str(advice(made, THRESHOLDS))
