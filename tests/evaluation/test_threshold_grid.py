"""Grids of thresholds, the recommended row, and the preset made from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from h2gen.cache.config import CacheConfig
from h2gen.errors import PresetError, SettingError
from h2gen.evaluation.recommend import cache_of, preset_figures, recommended
from h2gen.evaluation.results import Score, pareto, score, timing
from h2gen.evaluation.threshold_grid import grid, parse_values
from h2gen.settings import presets
from tests.evaluation.comparisons import LPIPS, SSIM, comparison

BASE = CacheConfig(0.15, 0.15, 3, 1, 3)


def test_a_grid_is_every_combination_with_the_guards_of_the_preset() -> None:
    found = grid(BASE, "0.05,0.1", "0.2")
    assert found == [CacheConfig(0.05, 0.2, 3, 1, 3), CacheConfig(0.1, 0.2, 3, 1, 3)]
    assert grid(BASE, None, None) == [BASE]
    assert grid(BASE, None, "0.1,0.1,0.2") == [replace(BASE, tau2=0.1), replace(BASE, tau2=0.2)]


@pytest.mark.parametrize(
    ("tau1", "tau2", "words"),
    [
        ("x", None, "tau1 is 'x'"),
        ("0.1,", None, "give numbers"),
        (None, "-1", "tau2 is -1"),
        ("nan", None, "tau1 is nan"),
        (",".join(f"0.{n:03}" for n in range(1, 12)), ",".join(f"0.{n:03}" for n in range(1, 12)), "121 settings"),
    ],
)
def test_thresholds_that_cannot_be_are_one_line(tau1: str | None, tau2: str | None, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        grid(BASE, tau1, tau2)


def test_thresholds_stand_once_each() -> None:
    assert parse_values("tau1", "0.1, 0.2,0.1") == [0.1, 0.2]


def test_the_fastest_row_whose_worst_picture_is_close_is_recommended() -> None:
    found = comparison(cases=2)
    ours = [method for method in found.methods if method.kind == "h2"][:1] * 3
    rows = [
        replace(row, name=name, speedup=speedup, scores={"ssim": Score(worst, worst, 0)})
        for row, name, speedup, worst in zip(ours, "abc", (1.2, 1.5, 2.0), (0.99, 0.96, 0.9), strict=True)
    ]
    assert recommended(rows, [SSIM]) == "b"
    assert recommended([rows[2], replace(rows[2], name="d", scores={"ssim": Score(0.93, 0.9, 0)})], [SSIM]) == "d"
    far = [
        replace(rows[0], name=name, scores={"lpips": Score(mean, mean, 0)}) for name, mean in (("x", 0.09), ("y", 0.04))
    ]
    assert recommended(far, [LPIPS]) == "y"  # lower is better


def test_a_speed_up_within_the_clocks_noise_does_not_recommend_a_worse_row() -> None:
    row = next(method for method in comparison(cases=2).methods if method.kind == "h2")
    rows = [
        replace(row, name=name, speedup=speedup, scores={"ssim": Score(mean, 0.96, 0)})
        for name, speedup, mean in (("a", 2.5, 0.97), ("b", 2.48, 0.98), ("c", 2.0, 0.99))
    ]
    assert recommended(rows, [SSIM]) == "b"


def test_a_row_becomes_a_preset_with_its_figures(own_home: Path) -> None:
    found = comparison(cases=2)
    row = next(method for method in found.methods if method.kind == "h2")
    path = presets.write_preset("mine", cache_of(row), "Mine.", preset_figures(row, found))
    assert path.is_relative_to(own_home)
    preset = presets.load_preset("mine")
    assert preset.config == cache_of(row)
    assert preset.figures["share"] == round(row.share, 3) and "2 pictures" in preset.figures["measured_on"]
    with pytest.raises(PresetError, match="A preset 'mine' already exists"):
        presets.write_preset("mine", cache_of(row), "", {})


@pytest.mark.parametrize("name", ["", "../x", "a b", "fast", "-x", "x" * 65, "\x1b[31m"])
def test_a_preset_gets_a_plain_name_that_is_free(name: str) -> None:
    with pytest.raises(PresetError):
        presets.check_new(name)


def test_the_best_points_are_those_that_no_other_beats() -> None:
    points = [(1.0, 10.0), (2.0, 20.0), (2.0, 15.0), (3.0, 20.0), (1.0, 10.0)]
    assert pareto(points) == [True, True, False, False, True]


def test_a_score_has_its_worst_case() -> None:
    assert score([0.9, 0.8, 1.0], True) == Score(0.9, 0.8, 1)
    assert score([0.1, 0.3], False).worst_case == 1
    assert score([0.9, float("nan")], True).worst_case == 1
    assert score([float("inf"), 30.0], True) == Score(75.0, 30.0, 1)  # an identical picture counts as 120 dB
    assert score([float("inf")] * 2, True).mean == float("inf")
    assert timing([3.0, 1.0, 2.0]).median == 2.0
