"""What tuning would take is known before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from h2gen.cache import CacheConfig
from h2gen.evaluation.compare import prepare_comparison
from h2gen.evaluation.effort import timed_before
from h2gen.evaluation.frontier import prepare_frontier
from h2gen.evaluation.number_format import duration
from h2gen.evaluation.tune.estimate import estimate
from h2gen.evaluation.tune.options import TuneOptions
from h2gen.evaluation.tune.tune import prepare_tuning
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey, user_folder, write_profile
from h2gen.settings.profiles.find import PICTURES

INT8 = {"quantize": "int8"}
TINY = ProfileKey("tiny", "", 28, 128, 128, "true")


def test_pictures_are_counted_and_weighed_by_their_blocks() -> None:
    small = TuneOptions(search=1, check=2, budgets=(0.5,), tries=2, threshold_tries=4)
    assert small.pictures == 1 * (1 + 3 + (3 + 9 + 4 + 32 + 4)) + 2 * (1 + 6)
    assert small.uncached_pictures == round(1 + 1 + 1 + 2 + 0.5 * 52 + 2 * (1 + 0.5 * 6))
    without = replace(small, threshold_tries=0)
    assert without.pictures == 1 * (1 + 3 + (3 + 9 + 4 + 32)) + 2 * (1 + 5)
    assert TuneOptions().uncached_pictures == PICTURES  # what a missing profile says


def test_time_is_told_where_a_picture_of_the_model_was_timed_before() -> None:
    found = estimate(TuneOptions(), TINY)
    assert found.seconds is not None and found.seconds_uncached is not None
    assert found.seconds == found.uncached_pictures * found.seconds_uncached
    twice = estimate(TuneOptions(), replace(TINY, steps=56)).seconds
    assert twice == pytest.approx(2 * found.seconds)
    assert "minutes at " in str(found) and "'tiny-28-128x128-guided-" in str(found)
    unknown = estimate(TuneOptions(), replace(TINY, model="dev"))
    assert unknown.seconds is None and "at most" not in str(unknown).partition("uncached ones")[2]
    assert str(unknown).startswith(
        "At most 3700 pictures, which take about as long as 1144 uncached ones. The profile goes"
    )


def test_time_is_not_taken_from_a_profile_of_other_weights() -> None:
    known = timed_before(TINY)
    assert known is not None
    for other in (INT8, {"quantize_text": "int8"}):
        assert timed_before(TINY, other) is None and estimate(TuneOptions(), TINY, other).seconds is None
    measured = {**known[1].measured, "seconds_uncached": 99.0, **INT8}
    write_profile(replace(known[1], path=user_folder() / "eight.toml", measured=measured))
    assert timed_before(TINY) == known
    assert "as measured for the profile 'eight.toml'" in str(estimate(TuneOptions(), TINY, INT8))


def test_comparing_and_ranking_take_no_time_from_it_either() -> None:
    for options in ({}, INT8):
        compared = prepare_comparison("a cat", **options).effort
        ranked = prepare_frontier(**options).estimate
        assert (compared.seconds is None) == (ranked.seconds is None) == bool(options)


def test_the_profiles_place_is_told_before_its_models_hash_is_known() -> None:
    assert estimate(TuneOptions(), TINY).profile == user_folder() / "tiny-28-128x128-guided-*.toml"
    assert estimate(TuneOptions(profile=Path("mine.toml")), TINY).to_json()["profile"] == "mine.toml"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (40, "40 seconds"), (1155, "19 minutes"), (120, "2 minutes"), (12600, "3.5 hours"),
     (75600, "21 hours")],
)  # fmt: skip
def test_a_duration_is_rounded_for_planning(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("speedups", "more", "settings", "words"),
    [
        ((6.0, 2.0), {}, {}, "Now use it: h2gen 'a cat' --speedup 3"),
        ((2.4,), {}, {"steps": 50, "cfg": 1.0}, "Now use it: h2gen 'a cat' --speedup 2 --steps 50 --cfg 1"),
        ((2.4,), {}, {"model": "dev"}, "Now use it: h2gen 'a cat' --speedup 2 --model dev"),
        ((1.1,), {}, {}, "No measured setting saves time on this machine"),
        ((6.0,), {"profile": Path("mine.toml")}, {}, "To choose from it with --speedup or --fidelity, move it to "),
    ],
)
def test_the_end_says_what_to_type_next(
    speedups: tuple[float, ...], more: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    prepared = prepare_tuning(options=TuneOptions(**more), **settings)
    figures = [Figures(1 / speedup, 1.0, speedup, 0.9, 0.9, 30.0, 30.0) for speedup in speedups]
    choices = tuple(Choice("x", 28, "own", CacheConfig(0, 0), each) for each in figures)
    assert prepared.next_command(Profile(Path("x.toml"), TINY, choices, {})).startswith(words)
