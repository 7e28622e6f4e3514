"""Python takes what the command line takes, under the same names and with the same defaults."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import h2gen
from h2gen.cache import CacheConfig
from h2gen.cli.app import run
from h2gen.errors import ArgumentError, CacheError, ModelError, OutputError, SettingError, UsageError
from h2gen.models.catalogue import BUNDLED
from h2gen.output.metadata import read_metadata
from h2gen.settings.presets import DEFAULT, load_preset
from h2gen.settings.values import OFF
from tests.small import flux_pipeline, run_kwargs

PRESET = {name: load_preset(name).config for name in (DEFAULT, "fast", "paper")}
QUICK: dict[str, Any] = {"seed": 7, "steps": 3, "cfg": 1.0}


def config_of(config: CacheConfig | None = None, **settings: Any) -> CacheConfig:
    """The settings that ``h2_cache`` hands to the cache."""
    from h2gen.generation.own_pipeline import _resolved

    return _resolved("h2_cache", config, settings)


def test_one_default_everywhere(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["a cat", "--steps", "3", "--cfg", "1", "--seed", "7", "-q", "-o", "typed.png"]) == 0
    typed = read_metadata(tmp_path / "typed.png")
    made = tiny.generate("a cat", **QUICK)
    assert (typed.settings, typed.preset) == (made.settings, made.preset)
    assert made.settings.cache == PRESET[DEFAULT] == config_of()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, PRESET[DEFAULT]),
        ({"preset": "fast"}, PRESET["fast"]),
        ({"preset": "paper"}, PRESET["paper"]),
        ({"tau1": 0.1, "tau2": 0.3}, CacheConfig(0.1, 0.3)),
        ({"tolerance": 0.01}, CacheConfig(0, 0, tolerance=0.01)),
        ({"plan": "FRF"}, CacheConfig(0, 0, plan="FRF")),
        ({"no_cache": True}, OFF),
        ({"preset": "paper", "warmup_steps": 2}, CacheConfig(0.15, 0.22, 2)),
    ],
)
def test_settings_of_the_cache_mean_the_same_everywhere(tiny: Any, given: dict[str, Any], wanted: CacheConfig) -> None:
    assert tiny.settings("a cat", **QUICK, **given).cache == wanted
    assert config_of(**given) == wanted


def test_all_settings_of_a_cache_can_be_given_at_once(tiny: Any) -> None:
    config = CacheConfig(0.1, 0.2, max_consecutive=3)
    assert tiny.settings("a cat", config, **QUICK).cache == config_of(config) == config
    assert tiny.settings("a cat", config, tau1=0.3, **QUICK).cache == CacheConfig(0.3, 0.2, max_consecutive=3)
    assert tiny.settings("a cat", None, **QUICK).cache == OFF
    for preset in ({"preset": "fast"}, {"speedup": 3}):
        with pytest.raises(SettingError, match=r"cache and \w+ contradict each other"):
            tiny.settings("a cat", config, **QUICK, **preset)
    with pytest.raises(SettingError, match="config and preset contradict"):
        config_of(config, preset="fast")


def test_on_a_transformer_alone_the_default_is_the_same() -> None:
    pipe = flux_pipeline()
    with h2gen.h2_cache(pipe.transformer) as trace:
        pipe(**run_kwargs(pipe, steps=8))
    assert any(step.error is not None for step in trace.steps), "the tolerance was applied"


def test_the_lower_function_has_no_default_of_its_own() -> None:
    with (
        pytest.raises(CacheError, match=r"no settings here; give a CacheConfig.*h2gen\.h2_cache"),
        h2gen.cache.h2_cache(flux_pipeline()),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"size": "16:9"}, (176, 96)),
        ({"size": "96x64"}, (96, 64)),
        ({"size": 96}, (96, 96)),
        ({"width": 96, "height": 64}, (96, 64)),
        ({"width": 64}, (64, 128)),
        ({}, (128, 128)),
    ],
)
def test_a_size_is_given_as_on_the_command_line(tiny: Any, given: dict[str, Any], size: tuple[int, int]) -> None:
    settings = tiny.settings("a cat", **given)
    assert (settings.width, settings.height) == size


def test_a_seed_may_be_text_but_only_one(tiny: Any) -> None:
    assert tiny.settings("a cat", seed="7").seed == tiny.settings("a cat", seed=7).seed == 7
    with pytest.raises(SettingError, match=r"3 seeds, but only one picture.*h2gen\.batch"):
        tiny.settings("a cat", seed="1-3")


def test_a_speed_is_reached_by_the_profile(tiny: Any) -> None:
    chosen = tiny.settings("a cat", speedup=3)
    assert chosen.cache.enabled or chosen.steps < tiny.settings("a cat").steps
    with pytest.raises(SettingError, match="contradict"):
        tiny.settings("a cat", speedup=3, fidelity=0.9)
    with pytest.raises(SettingError, match="chooses solver and cache itself"):
        tiny.settings("a cat", speedup=3, preset="fast")


def test_lines_that_the_command_line_says_first_are_warnings(tiny: Any) -> None:
    with pytest.warns(UserWarning, match="100x60 is not a multiple of"):
        tiny.generate("a cat", size="100x60", **QUICK)
    with pytest.warns(UserWarning, match=r"A tolerance of 0\.9 is outside the useful range"):
        tiny.generate("a cat", tolerance=0.9, **QUICK)
    with pytest.warns(UserWarning, match="--tolerance replaces the thresholds of the preset 'paper'"):
        tiny.generate("a cat", preset="paper", tolerance=0.002, **QUICK)


def test_a_picture_is_saved_where_it_is_asked_for(tiny: Any, tmp_path: Path) -> None:
    first = tiny.generate("a cat", out=tmp_path, format="webp", sidecar=True, **QUICK)
    assert first.path == tmp_path / "a-cat-7.webp" and first.path.with_suffix(".toml").exists()
    second = tiny.generate("a cat", out=str(tmp_path / "x.png"), no_metadata=True, **QUICK)
    assert second.path == tmp_path / "x.png"
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    with pytest.raises(UsageError):
        read_metadata(second.path)


def test_a_place_that_cannot_be_written_to_is_reported_before_the_picture_is_made(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a folder"):
        tiny.generate("a cat", out=tmp_path / "file" / "x.png", on_step=pytest.fail, **QUICK)


@pytest.mark.parametrize("name", ["format", "no_metadata", "sidecar", "overwrite"])
def test_what_only_a_file_has_is_refused_without_one(tiny: Any, name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} has no effect without out"):
        tiny.generate("a cat", on_step=pytest.fail, **QUICK, **{name: "jpg" if name == "format" else True})


def test_a_checkpoint_that_is_damaged_by_now_costs_no_finished_picture(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "copy"))
    session = h2gen.load(str(folder), device="cpu")
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"model_index\.json"):
        session.generate("a cat", out=tmp_path, on_step=pytest.fail, **QUICK)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("num_inference_steps", "did you mean 'steps'?"),
        ("guidance_scale", "did you mean 'guidance'?"),
        ("negative_prompt", "did you mean 'negative'?"),
        ("sead", "did you mean 'seed'?"),
        ("tau_1", "did you mean 'tau1'?"),
        ("output", "did you mean 'out'?"),
        ("torch_dtype", "give 'dtype' to h2gen.load()"),
        ("device", "give 'device' to h2gen.load()"),
        ("num_images_per_prompt", "for several pictures, use h2gen.batch()"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(tiny: Any, name: str, answer: str) -> None:
    with pytest.raises(ArgumentError) as error:
        tiny.generate("a cat", **{name: 8})
    assert str(error.value).startswith(f"generate() has no argument {name!r}; {answer}")


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda: h2gen.load("tiny", torch_dtype="bf16"), "load() has no argument 'torch_dtype'; did you mean 'dtype'?"),
        (lambda: h2gen.CacheConfig(tau_1=0.1), "CacheConfig() has no argument 'tau_1'; did you mean 'tau1'?"),
        (lambda: h2gen.Settings("a cat", num_steps=3), "Settings() has no argument 'num_steps'; did you mean 'steps'?"),
        (lambda: h2gen.apply(None, thresh=0.1), "apply() has no argument 'thresh'"),
        (lambda: h2gen.apply(None, rdt=0.1), "apply() has no argument 'rdt'; did you mean 'tolerance'?"),
        (lambda: h2gen.apply(None, speedup=3), "apply() cannot choose settings by speedup"),
        (lambda: h2gen.batch(["a cat"], outdir="x"), "batch() has no argument 'outdir'; did you mean 'out'?"),
        (lambda: h2gen.batch(["a cat"], num_steps=3), "batch() has no argument 'num_steps'; did you mean 'steps'?"),
        (lambda: h2gen.compare("a cat", repeats=1), "compare() has no argument 'repeats'; did you mean 'repeat'?"),
        (lambda: h2gen.tune(budget=[0.5]), "tune() has no argument 'budget'; did you mean 'budgets'?"),
        (lambda: h2gen.CompareOptions(repeats=1), "CompareOptions() has no argument 'repeats'; did you mean 'repeat'?"),
        (lambda: h2gen.TuneOptions(trys=1), "TuneOptions() has no argument 'trys'; did you mean 'tries'?"),
    ],
)
def test_every_public_function_does_so(call: Any, answer: str) -> None:
    with pytest.raises(ArgumentError) as error:
        call()
    assert str(error.value).startswith(answer) and "\n" not in str(error.value)


@pytest.mark.parametrize("error", [TypeError, h2gen.H2GenError])
def test_a_wrong_name_is_pythons_error_and_ours(error: type[Exception]) -> None:
    with pytest.raises(error):
        h2gen.CacheConfig(tau3=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "given",
    [{"size": 51.2}, {"preset": 3}, {"solver": 1}, {"steps": "many"}, {"negative": 3}, {"out": 3}, {"seed": 1.5}],
)
def test_a_value_of_another_type_is_one_line(tiny: Any, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(given))} is "):
        tiny.generate("a cat", **given)
