"""One stage's decision and the guards are pure: none of this needs a model."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, Outcome
from h2gen.cache.decide import decide_by_change, decide_detail_unseen
from h2gen.cache.outcome import UNDECIDED
from h2gen.cache.policies import Plan, Thresholds, Tolerance, policy_of, switched_off
from h2gen.cache.policies.guards import is_guarded
from h2gen.errors import SettingError

changes = st.floats(0, 10, allow_nan=False)
taus = st.floats(0, 10, allow_nan=False)
counts = st.integers(0, 60)


def test_a_change_below_the_threshold_is_a_hit() -> None:
    assert decide_by_change(0.1499, 0.15) is Outcome.REUSED


def test_a_change_above_the_threshold_is_a_miss() -> None:
    assert decide_by_change(0.1501, 0.15) is Outcome.COMPUTED


@given(taus)
def test_a_change_equal_to_the_threshold_is_a_miss(tau: float) -> None:
    assert decide_by_change(tau, tau) is Outcome.COMPUTED


@given(taus)
def test_the_largest_number_below_the_threshold_is_a_hit(tau: float) -> None:
    assume(tau > 0)
    assert decide_by_change(math.nextafter(tau, 0.0), tau) is Outcome.REUSED


@given(changes)
def test_a_threshold_of_zero_never_hits(change: float) -> None:
    assert decide_by_change(change, 0.0) is Outcome.COMPUTED


@given(taus)
def test_without_a_kept_indicator_it_is_a_miss(tau: float) -> None:
    assert decide_by_change(None, tau) is Outcome.COMPUTED


@pytest.mark.parametrize("change", [math.nan, math.inf, -math.inf])
@given(tau=taus)
def test_a_change_that_is_not_finite_is_a_miss(change: float, tau: float) -> None:
    assert decide_by_change(change, tau) is Outcome.COMPUTED


@given(changes, taus, taus)
def test_a_hit_stays_a_hit_under_a_larger_threshold(change: float, tau: float, more: float) -> None:
    if decide_by_change(change, tau) is Outcome.REUSED:
        assert decide_by_change(change, tau + more) is Outcome.REUSED


@given(changes, changes, taus)
def test_a_smaller_change_never_turns_a_hit_into_a_miss(change: float, less: float, tau: float) -> None:
    if decide_by_change(change, tau) is Outcome.REUSED:
        assert decide_by_change(max(0.0, change - less), tau) is Outcome.REUSED


def test_outcomes_are_the_words_of_the_trace() -> None:
    assert {str(outcome.value) for outcome in Outcome} == {"computed", "reused", "forced", "guarded", "skipped"}
    assert Outcome("forced") == "forced"


@given(counts, counts, st.none() | st.integers(1, 60))
def test_without_guards_no_step_is_guarded(step: int, since_full: int, total: int | None) -> None:
    assert not is_guarded(CacheConfig(), step, total, since_full)


@given(counts, counts, st.none() | st.integers(1, 60), counts)
def test_the_first_steps_are_guarded_and_no_more(warmup: int, step: int, total: int | None, since_full: int) -> None:
    assert is_guarded(CacheConfig(warmup_steps=warmup), step, total, since_full) == (step < warmup)


@given(counts, st.integers(1, 60), counts, st.data())
def test_exactly_the_last_steps_are_guarded(final: int, total: int, since_full: int, data: st.DataObject) -> None:
    config = CacheConfig(final_steps=final)
    guarded = [step for step in range(total) if is_guarded(config, step, total, since_full)]
    assert guarded == list(range(total))[max(0, total - final) :]


@given(st.integers(1, 60), counts, counts)
def test_a_row_of_reuse_ends_at_max_consecutive(most: int, step: int, since_full: int) -> None:
    assert is_guarded(CacheConfig(max_consecutive=most), step, None, since_full) == (since_full >= most)


@given(st.integers(1, 6), st.integers(1, 40))
def test_a_run_that_always_hits_is_full_every_max_consecutive_plus_one_steps(most: int, total: int) -> None:
    config = CacheConfig(max_consecutive=most)
    full, since_full = [], 0
    for step in range(total):
        if step == 0 or is_guarded(config, step, total, since_full):
            full.append(step)
            since_full = 0
        else:
            since_full += 1
    assert full == list(range(0, total, most + 1))


@given(counts, counts, counts, counts, st.integers(1, 60), counts)
def test_guards_add_up(warmup: int, final: int, most: int, step: int, total: int, since_full: int) -> None:
    assume(step < total)
    alone = [
        CacheConfig(warmup_steps=warmup),
        CacheConfig(final_steps=final),
        CacheConfig(max_consecutive=most),
    ]
    together = CacheConfig(warmup_steps=warmup, final_steps=final, max_consecutive=most)
    assert is_guarded(together, step, total, since_full) == any(
        is_guarded(config, step, total, since_full) for config in alone
    )


@pytest.mark.parametrize("field", ["tau1", "tau2"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_a_threshold_that_means_nothing_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingError, match=field):
        CacheConfig(**{field: value})


@pytest.mark.parametrize("field", ["warmup_steps", "final_steps", "max_consecutive"])
@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True])
def test_a_guard_that_is_no_whole_number_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingError, match=field):
        CacheConfig(**{field: value})


def test_whole_thresholds_become_floats() -> None:
    config = CacheConfig(tau1=1, tau2=0)
    assert (config.tau1, config.tau2) == (1.0, 0.0)
    assert isinstance(config.tau1, float)
    assert isinstance(config.tau2, float)


@pytest.mark.parametrize(("tau1", "tau2", "enabled"), [(0, 0, False), (0.1, 0, True), (0, 0.1, True)])
def test_it_is_enabled_when_either_threshold_is(tau1: float, tau2: float, enabled: bool) -> None:
    assert CacheConfig(tau1=tau1, tau2=tau2).enabled is enabled


@pytest.mark.parametrize(
    ("given", "thresholds"),
    [
        ({}, (0.15, 0.22)),
        ({"final_steps": 2, "forecast": 1}, (0.15, 0.22)),
        ({"tolerance": 0.01}, (0, 0)),
        ({"tolerance": 0.0}, (0.15, 0.22)),
        ({"plan": "FR"}, (0, 0)),
        ({"tau1": 0.1}, (0.1, 0.22)),
        ({"tau2": 0.1, "tolerance": 0.01}, (0.15, 0.1)),
        ({"tau1": 0.1, "tau2": 0.2, "tolerance": 0.01}, (0.1, 0.2)),
    ],
    ids=str,
)
def test_a_configuration_has_the_papers_thresholds_unless_something_else_decides(
    given: dict[str, Any], thresholds: tuple[float, float]
) -> None:
    config = CacheConfig(**given)
    assert (config.tau1, config.tau2) == thresholds
    assert CacheConfig(**asdict(config)) == config


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (CacheConfig(), Thresholds),
        (CacheConfig(0, 0), Thresholds),
        (CacheConfig(tolerance=0.01), Tolerance),
        (CacheConfig(0, 0, tolerance=0.01), Tolerance),
        (CacheConfig(plan="FR"), Plan),
        (CacheConfig(plan="FS", tolerance=0.01), Tolerance),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.words,
)
def test_a_configuration_has_exactly_one_policy(config: CacheConfig, kind: type) -> None:
    assert type(policy_of(config)) is kind


@pytest.mark.parametrize(
    ("given", "off"),
    [
        ({}, {}),
        ({"forecast": 1, "tau1": None, "tolerance": 0.0}, {}),
        ({"tolerance": 0.01}, {"plan": "", "tau1": 0.0, "tau2": 0.0}),
        ({"tolerance": 0.01, "tau2": 0.1}, {"plan": ""}),
        ({"plan": "FR"}, {"tolerance": 0.0, "tau1": 0.0, "tau2": 0.0}),
        ({"tau1": 0.1}, {"plan": "", "tolerance": 0.0}),
        ({"tau1": 0.1, "plan": "", "tolerance": 0.0}, {}),
    ],
    ids=str,
)
def test_what_decides_switches_the_rest_off(given: dict[str, object], off: dict[str, object]) -> None:
    assert switched_off(given) == off


def test_after_a_structure_hit_the_detail_stage_is_forced_unless_it_is_checked() -> None:
    forced, checked = CacheConfig(), CacheConfig(hierarchy="checked")
    assert decide_detail_unseen(Outcome.REUSED, 1, forced) is Outcome.FORCED
    assert decide_detail_unseen(Outcome.REUSED, 1, checked) is UNDECIDED
    assert decide_detail_unseen(Outcome.COMPUTED, 1, forced) is UNDECIDED


@given(st.integers(1, 9), st.integers(0, 20), st.sampled_from([Outcome.REUSED, Outcome.COMPUTED]))
def test_a_detail_residual_that_is_too_old_is_computed_whatever_the_structure_did(
    most: int, age: int, structure: Outcome
) -> None:
    found = decide_detail_unseen(structure, age, CacheConfig(max_detail_age=most))
    assert (found is Outcome.GUARDED) == (age > most)
