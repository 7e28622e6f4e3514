"""Notices about settings that can be used, but probably do not do what was meant."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from h2gen.cache.config import CacheConfig
from h2gen.settings.resolve import request_from, resolve_request
from tests import loras


def notices(**given: Any) -> list[str]:
    """Those about the settings: not the one about the bundled model."""
    return [line for line in resolve_request("a cat", given, {}).notices if "bundled" not in line]


@pytest.mark.parametrize("tolerance", [0.0005, 0.002, 0.01])
def test_a_tolerance_within_its_range_is_not_remarked_on(tolerance: float) -> None:
    assert notices(tolerance=tolerance) == []


@pytest.mark.parametrize("tolerance", [0.031, 0.1, 10.0])
def test_a_tolerance_beyond_its_range_is(tolerance: float) -> None:
    (line,) = notices(tolerance=tolerance)
    assert line.startswith(f"A tolerance of {tolerance:g} is outside the useful range, 0.001 to 0.03;")
    assert "fewer --steps" in line and "expect a different picture." in line
    (line,) = notices(tolerance=tolerance, model="tiny-video")
    assert "expect a different video." in line


def test_one_step_is_singular() -> None:
    (line,) = notices(preset="fast", steps=1)
    assert line.startswith("With 1 step the preset 'fast' skips few steps or none")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"preset": "fast", "tau1": 0.1}, "--tau1 replaces the tolerance of the preset 'fast'."),
        ({"preset": "fast", "tau1": 0.1, "tau2": 0.2}, "--tau1 and --tau2 replace the tolerance of the preset 'fast'."),
        ({"preset": "paper", "tolerance": 0.002}, "--tolerance replaces the thresholds of the preset 'paper'."),
        ({"preset": "fast", "plan": "F" * 28}, "--plan replaces the tolerance of the preset 'fast'."),
        (
            {"preset": "fast", "steps": 8},
            "With 8 steps the preset 'fast' skips few steps or none; it is meant for more.",
        ),
    ],
)
def test_what_makes_a_preset_fast_is_not_dropped_in_silence(given: dict[str, Any], line: str) -> None:
    assert notices(**given) == [line]


@pytest.mark.parametrize("name", ["plan", "tolerance"])
def test_of_a_preset_with_a_plan_and_a_tolerance_both_are_named(name: str, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text("plan = 'FSSF'\ntolerance = 0.02\n")
    given = {"plan": "FFSF", "tolerance": 0.01}
    (line,) = notices(preset=str(preset), steps=4, **{name: given[name]})
    assert line == f"--{name} replaces the plan and tolerance of the preset 'mine'."
    assert notices(preset=str(preset), steps=4, **given) == []


@pytest.mark.parametrize(
    "given",
    [
        {"preset": "fast"},
        {"preset": "fast", "tolerance": 0.004},
        {"preset": "paper", "tau1": 0.1},
        {"tau1": 0.1, "tau2": 0.2},
        {"steps": 4},
        {"preset": "off", "steps": 4},
    ],
)
def test_what_is_meant_is_not_remarked_on(given: dict[str, Any]) -> None:
    assert notices(**given) == []


def test_a_profiles_figures_are_a_rough_guide_with_what_it_was_not_measured_with(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "cat.png")
    layers: Any = [("profile", asdict(CacheConfig(tolerance=0.002))), ("option", {"image": str(tmp_path / "cat.png")})]
    line = "The profile does not account for --image; its figures are only a rough guide here."
    assert line in request_from("a cat", layers).notices
    assert line not in request_from("a cat", layers[:1]).notices


def test_a_lora_that_is_given_twice_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loras.save_smallest(tmp_path / "a.safetensors")
    loras.save_smallest(tmp_path / "b.safetensors")  # the same contents
    loras.save_smallest(tmp_path / "c.safetensors", 1.0)
    given = {"model": "dev", "lora": ["a.safetensors:0.5", "a.safetensors", "c.safetensors"]}
    assert notices(**given) == ["--lora 'a.safetensors' is given twice; the scales add up to 1.5."]
    given["lora"][1] = "b.safetensors:2"
    line = "--lora 'a.safetensors' and 'b.safetensors' are the same LoRA, given twice; the scales add up to 2.5."
    assert notices(**given) == [line]
    assert notices(model="dev", lora=["a.safetensors", "c.safetensors"]) == []


def test_a_control_picture_of_another_kind_than_the_models_gets_a_remark(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")

    def about(model: str, kind: str) -> list[str]:
        lines = notices(model=model, control=f"{kind}{tmp_path / 'photo.png'}")
        return [line for line in lines if "trained to follow" in line]

    assert about("depth", "canny:") == [
        "'depth' was trained to follow 'depth' pictures, but 'photo.png' is given as 'canny'; expect a poor picture, "
        "or use --model canny."
    ]
    assert about("black-forest-labs/FLUX.1-Canny-dev", "pose:")[0].endswith("given as 'pose'; expect a poor picture.")
    assert about("depth", "depth:") == about("depth", "") == about("canny", "edges:") == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, True),
        ({"preset": "off"}, True),
        ({"plan": "FFS" + "F" * 25}, True),
        ({"plan": "FFR" + "F" * 25}, False),
        ({"tau1": 0.1, "tau2": 0.1}, False),
    ],
    ids=str,
)
def test_keeping_residuals_in_another_way_is_remarked_on_where_none_are_kept(given: dict[str, Any], said: bool) -> None:
    lines = [line for line in notices(cache_memory="fp8", **given) if line.startswith("--cache-memory has no effect")]
    assert bool(lines) is said
