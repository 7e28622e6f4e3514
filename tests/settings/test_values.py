"""Settings: what is accepted, what is refused, and how sizes are read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2gen.cache import CacheConfig
from h2gen.errors import SettingError
from h2gen.models.defaults import ModelDefaults
from h2gen.settings.layers import merge
from h2gen.settings.seeds import random_seed
from h2gen.settings.sizes import parse_size
from h2gen.settings.table import LARGEST_SIDE
from h2gen.settings.values import FILES, NOT_SETTINGS, OFF, Settings

DEV = ModelDefaults(width=1024, height=1024, steps=28, guidance=3.5, cfg=1.0, max_sequence_length=512, size_multiple=16)
GOOD: dict[str, Any] = {"prompt": "a cat", "seed": 0, "width": 64, "height": 64, "steps": 4}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", ""), ("prompt", " \n"), ("seed", -1), ("seed", 2**63), ("seed", 1.5), ("seed", True),
        ("steps", 0), ("steps", -3), ("steps", 10**6), ("width", 0), ("height", LARGEST_SIDE + 1),
        ("guidance", -1), ("guidance", float("nan")), ("guidance", float("inf")), ("guidance", "3"),
        ("cfg", -0.5), ("cfg", float("nan")), ("max_sequence_length", 0), ("negative", "a dog"),
        ("guidance", 10**400), ("negative", 3), ("negative", "\ud800"), ("negative", "x" * 100_001),
        ("prompt", None), ("prompt", "a\udfffb"), ("prompt", "x" * 100_001),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused_in_one_line(name: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        Settings(**{**GOOD, name: value})
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["tau1", "tau2"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), 10**400, "0.1", None, True])
def test_a_threshold_is_a_finite_number_from_0_upwards(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=name):
        CacheConfig(**{name: value})


@pytest.mark.parametrize("name", ["warmup_steps", "final_steps", "max_consecutive"])
@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_a_guard_is_a_whole_number_from_0_upwards(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=name):
        CacheConfig(**{name: value})


def test_the_cache_is_on_as_soon_as_one_threshold_is() -> None:
    assert not OFF.enabled
    assert CacheConfig(0.1, 0).enabled
    assert CacheConfig(0, 0.1).enabled


@pytest.mark.parametrize(
    ("plan", "cfg", "words"), [("FRR/FFR", 1.0, "one pass without"), ("FRR/FFR/FRF", 3.0, "two passes with")]
)
def test_a_plan_with_more_parts_than_passes_is_refused_in_one_line(plan: str, cfg: float, words: str) -> None:
    with pytest.raises(SettingError, match=f"plan has {plan.count('/') + 1} parts, and a step has {words}") as error:
        Settings("a cat", 1, 64, 64, 3, cfg=cfg, cache=CacheConfig(plan=plan))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("plan", "cfg"), [("FRR", 1.0), ("FRR", 3.0), ("FRR/FFR", 3.0), ("", 1.0)])
def test_a_plan_with_a_part_a_pass_or_one_for_all_is_taken(plan: str, cfg: float) -> None:
    assert Settings("a cat", 1, 64, 64, 3, cfg=cfg, cache=CacheConfig(plan=plan)).cache.plan == plan


def test_settings_as_json_are_all_of_them_in_the_order_of_their_fields() -> None:
    made = Settings(**GOOD, cfg=3, negative="a dog", cache=CacheConfig(0.1, 0.2, 1), solver="unipc")
    flat = asdict(made)
    assert [flat.pop(name) for name in NOT_SETTINGS] == [None, None]
    assert [flat.pop(name) for name in FILES] == [()] * len(FILES)  # files are left out if there are none
    others = ("shift", "attention", "frames", "fps")
    assert [flat.pop(name) for name in others] == ["own", "default", None, None]  # and so are these
    assert list(made.to_json().items()) == list((flat | flat.pop("cache")).items())
    assert made.to_json() is not made.to_json()


def test_heun_takes_two_passes_a_step_but_the_last_and_guidance_doubles_them() -> None:
    five = {**GOOD, "steps": 5}
    assert [Settings(**five, solver=solver).passes for solver in ("own", "unipc", "heun")] == [5, 5, 9]
    assert Settings(**five, solver="heun", cfg=3).passes == 18


def test_the_uncached_run_that_was_asked_for_is_that_of_the_models_own_solver() -> None:
    five = {**GOOD, "steps": 5}
    assert Settings(**five).reference == Settings(**five, solver="unipc", cfg=3).reference == 1
    assert Settings(**five, solver="heun").reference == Settings(**five, solver="heun", cfg=3).reference == 5 / 9
    assert Settings(**five, reference_steps=50).reference == 10
    assert Settings(**five, reference_steps=50, solver="heun", cfg=3).reference == 100 / 18
    with pytest.raises(SettingError, match="reference_steps"):
        Settings(**five, reference_steps=0)


def test_settings_as_json_are_flat_and_hold_the_thresholds() -> None:
    flat = Settings(**GOOD, cache=CacheConfig(0.1, 0.2)).to_json()
    assert flat["tau1"] == 0.1
    assert flat["prompt"] == "a cat"
    assert not any(isinstance(value, dict) for value in flat.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024x768", (1024, 768)), ("1024X768", (1024, 768)), (" 512 x 256 ", (512, 256)), ("768", (768, 768)),
        ("1024×768", (1024, 768)),
        ("1:1", (1024, 1024)), ("16:9", (1360, 768)), ("2.39:1", (1584, 656)),
    ],
)  # fmt: skip
def test_a_size_is_pixels_or_a_ratio_of_the_models_area(text: str, expected: tuple[int, int]) -> None:
    assert parse_size(text, DEV) == (*expected, None)


def test_a_size_that_is_not_a_multiple_is_rounded_with_a_notice() -> None:
    width, height, notice = parse_size("1000x777", DEV)
    assert (width, height) == (1008, 784)
    assert notice is not None
    assert "1000x777" in notice
    assert "1008x784" in notice


@pytest.mark.parametrize(
    "text",
    ["", "big", "0x0", "0x512", "512x0", "7x7", "100000x100000", "8208x512", "-5x5", "1e3x1e3", "0", "51.2", "0:1",
     "1:0", "1:99999", "512x512x3", "nan:1"],
)  # fmt: skip
def test_a_size_that_is_nothing_zero_or_huge_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="size is"):
        parse_size(text, DEV)


@given(st.floats(1, 3), st.floats(1, 3))
def test_a_ratio_keeps_about_the_models_area(wide: float, high: float) -> None:
    width, height, _ = parse_size(f"{wide:.3f}:{high:.3f}", DEV)
    assert width % 16 == height % 16 == 0
    assert 0.9 < width * height / 1024**2 < 1.1


def test_the_strongest_layer_wins_and_says_where_it_came_from() -> None:
    resolved = merge([("option", {"steps": None, "seed": 3}), ("preset", {"steps": 9, "seed": 4})])
    assert (resolved["steps"].value, resolved["steps"].source) == (9, "preset")
    assert (resolved["seed"].value, resolved["seed"].source) == (3, "option")


def test_random_seeds_differ() -> None:
    assert len({random_seed() for _ in range(8)}) > 1
