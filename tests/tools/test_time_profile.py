"""Timing a profile anew changes its seconds and their order, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from h2gen.cache.config import CacheConfig
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey
from tools.time_profile import timed


def test_only_seconds_and_speed_ups_change() -> None:
    figures = Figures(0.5, 9.0, 1.0, 0.99, 0.98, 50.0, 40.0)
    plan = CacheConfig(tau1=0, tau2=0, plan="FFSSSSSF")
    choices = tuple(
        Choice(label, steps, "own", cache, figures)
        for label, steps, cache in (("7 steps", 7, CacheConfig(tau1=0, tau2=0)), ("plan", 8, plan))
    )
    key = ProfileKey("tiny", "", 8, 64, 64, "plain")
    before = Profile(Path("x.toml"), key, choices, {"cfg": 1.0, "seconds_uncached": 9.0, "pictures": 8})
    after = timed(before, repeat=1)
    assert after.measured["pictures"] == 8 and 0 < after.measured["seconds_uncached"] < 9
    assert [choice.figures.speedup for choice in after.choices] == sorted(
        (choice.figures.speedup for choice in after.choices), reverse=True
    )
    for choice in after.choices:
        whole = choice.figures.speedup * choice.figures.seconds
        assert abs(whole / after.measured["seconds_uncached"] - 1) < 0.01
        old = next(each for each in choices if each.label == choice.label)
        assert replace(choice, figures=figures) == old
        assert replace(choice.figures, seconds=9.0, speedup=1.0) == figures
