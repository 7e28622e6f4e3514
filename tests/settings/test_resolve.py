"""One request from options, environment, configuration, preset and the model's defaults."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from h2gen.cache import CacheConfig
from h2gen.errors import DeviceError, ModelError, PresetError, SettingError, UsageError
from h2gen.settings.resolve import request_from, resolve_request
from h2gen.settings.user_defaults import USER_DEFAULTS, config_file
from tests import loras
from tests.locked import locked


def plan(environ: dict[str, str] | None = None, **given: Any) -> Any:
    return resolve_request("a cat", given, environ or {})


def configure(text: str) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text(text, encoding="utf-8")


def test_with_nothing_given_the_bundled_model_and_the_default_preset_are_used() -> None:
    made = plan()
    assert made.checkpoint.name == "tiny"
    assert made.resolved["tau1"].source == "preset balanced"
    assert made.resolved["steps"].source == "model default"
    assert made.resolved["seed"].source == "random"
    assert any("--model dev" in notice for notice in made.notices)


def test_an_option_beats_the_environment_beats_the_configuration_beats_the_model() -> None:
    configure("steps = 5\ncfg = 2.0\nsize = '96x96'\n")
    made = plan({"H2GEN_STEPS": "6", "H2GEN_CFG": "3"}, steps=7)
    assert (made.settings.steps, made.resolved["steps"].source) == (7, "option")
    assert (made.settings.cfg, made.resolved["cfg"].source) == (3.0, "environment")
    assert (made.settings.width, made.resolved["size"].source) == (96, "configuration")


def test_what_another_policy_switches_off_says_by_what() -> None:
    made = plan(tolerance=0.01)
    assert made.resolved["tolerance"].source == "option"
    assert {made.resolved[name].source for name in ("tau1", "tau2", "plan")} == {"off with tolerance"}
    made = plan(tau1=0.1)
    assert (made.resolved["tau1"].source, made.resolved["tolerance"].source) == ("option", "off with thresholds")
    both = plan(plan="F" + "S" * 26 + "F", tolerance=0.01)
    assert both.resolved["tau1"].source == "off with plan and tolerance"


def test_a_threshold_on_the_command_line_beats_the_preset() -> None:
    made = plan(preset="paper", tau1=0.08)
    assert (made.settings.cache.tau1, made.settings.cache.tau2) == (0.08, 0.22)


def test_choosing_the_model_in_any_way_ends_the_notice_about_the_bundled_one() -> None:
    assert not plan(model="tiny").notices
    assert not plan({"H2GEN_MODEL": "tiny"}).notices
    configure("model = 'tiny'")
    assert not plan().notices


def test_no_cache_switches_it_off_and_contradicts_thresholds_and_presets() -> None:
    assert not plan(no_cache=True).settings.cache.enabled
    for name, value in (("tau1", 0.1), ("final_steps", 2), ("preset", "fast")):
        with pytest.raises(SettingError, match="contradict"):
            plan(no_cache=True, **{name: value})


FULL_PLAN = "F" * 28


def test_a_plan_is_taken_from_a_preset_and_thresholds_that_are_stronger_switch_it_off(tmp_path: Path) -> None:
    (tmp_path / "planned.toml").write_text(f"plan = '{FULL_PLAN}'\nforecast = 1\n")
    preset = str(tmp_path / "planned.toml")
    made = plan(preset=preset)
    assert (made.settings.cache.plan, made.settings.cache.forecast) == (FULL_PLAN, 1)
    assert made.resolved["plan"].source == "preset planned"
    over = plan(preset=preset, tau1=0.1)
    assert (over.settings.cache.plan, over.settings.cache.tau1, over.settings.cache.forecast) == ("", 0.1, 1)
    assert plan(preset=preset, plan="").settings.cache.plan == ""
    assert plan(preset="paper", plan="F" + "S" * 27).settings.cache.plan == "F" + "S" * 27


def test_a_plan_and_a_threshold_of_the_same_person_contradict_each_other() -> None:
    with pytest.raises(SettingError, match="--plan and --tau2 contradict"):
        plan(plan=FULL_PLAN, tau2=0.1)


@pytest.mark.parametrize(
    ("given", "decides"),
    [
        ({}, ("F" + 26 * "S" + "F", 0.05, 3)),
        ({"plan": FULL_PLAN, "tolerance": 0.01}, (FULL_PLAN, 0.01, 3)),
        ({"plan": FULL_PLAN}, (FULL_PLAN, 0.0, 3)),
        ({"tolerance": 0.01}, ("", 0.01, 3)),
        ({"tolerance": 0.0}, ("F" + 26 * "S" + "F", 0.0, 3)),
        ({"plan": ""}, ("", 0.05, 3)),
        ({"plan": FULL_PLAN, "tolerance": 0.01, "warmup_steps": 5}, (FULL_PLAN, 0.01, 5)),
    ],
)
def test_a_plan_and_a_tolerance_of_the_same_person_decide_together(
    given: dict[str, Any], decides: tuple[str, float, int], tmp_path: Path
) -> None:
    """Either of a stronger one, alone, takes the place of both; switching one off leaves the other."""
    preset = tmp_path / "both.toml"
    preset.write_text(f"plan = '{'F' + 26 * 'S' + 'F'}'\ntolerance = 0.05\nwarmup_steps = 3\n")
    cache = plan(preset=str(preset), **given).settings.cache
    assert (cache.plan, cache.tolerance, cache.warmup_steps) == decides
    assert (cache.tau1, cache.tau2) == (0, 0)


@pytest.mark.parametrize("steps", [27, 29, 14])
def test_a_plan_for_another_number_of_steps_is_refused_in_one_line(steps: int) -> None:
    with pytest.raises(SettingError, match=f"for {steps} steps, and steps is 28") as error:
        plan(plan="F" * steps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("solver", "letters"), [("own", 28), ("unipc", 28), ("heun", 55)])
def test_a_plan_has_a_letter_for_each_time_that_the_solver_asks_the_model(solver: str, letters: int) -> None:
    assert len(plan(plan="F" * letters, solver=solver).settings.cache.plan) == letters
    for wrong in {27, 28, 29, 54, 55, 56} - {letters}:
        with pytest.raises(SettingError, match=f"plan (is for {wrong} steps|has {wrong} letters)"):
            plan(plan="F" * wrong, solver=solver)
    if solver == "heun":
        with pytest.raises(SettingError, match="28 steps of Heun are 55 passes; give one letter per pass"):
            plan(plan="F" * 28, solver=solver)


def test_a_plan_that_does_not_fit_is_told_with_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("plan = 'FFRF'\n")
    path = str(tmp_path / "mine.toml")
    with pytest.raises(SettingError, match=r"^plan \(from preset mine\) is for 4 steps, and steps is 28; "):
        plan(preset=path)
    with pytest.raises(SettingError, match=r"^plan \(from preset mine, named in the environment\) is for 4 steps"):
        plan({"H2GEN_PRESET": path})
    configure(f"preset = '{path}'\n")
    with pytest.raises(SettingError, match=r"^plan \(from preset mine, named in the configuration\) is for 4 steps"):
        plan()
    with pytest.raises(SettingError, match=r"^plan is for 3 steps"):
        plan(plan="FFF")


def test_whoever_says_all_of_the_cache_leaves_a_preset_below_nothing_to_say() -> None:
    recorded = {**asdict(CacheConfig(0.3, 0.4)), "steps": 6}
    made = request_from("a cat", [("option", {}), ("trace", recorded), ("environment", {"preset": "fast"})])
    assert made.settings.cache == CacheConfig(0.3, 0.4)
    assert made.preset is None


def test_a_lasting_base_does_not_get_in_the_way_of_models_that_need_none() -> None:
    assert plan({"H2GEN_BASE": "dev"}).checkpoint.base is None
    with pytest.raises(ModelError, match="takes no base"):
        plan(base="dev")


@pytest.mark.parametrize("name", ["dtype", "offload"])
def test_an_unknown_choice_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(SettingError, match="choose"):
        plan(**{name: "sideways"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stpes = 3", "did you mean 'steps'"),
        ("steps = '3'", "a whole number"),
        ("steps = true", "a whole number"),
        ("cfg = 'x'", "a number"),
        ("model = 3", "text"),
        ("tau1 = 0.1", "unknown key"),
        ("memory = '10X'", "memory '10X' is not supported; give auto, none or a size"),
        ("= 3", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_configuration_names_file_and_key(text: str, words: str) -> None:
    configure(text)
    with pytest.raises(SettingError) as caught:
        plan()
    assert words in str(caught.value)
    assert "config.toml" in str(caught.value)


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    with pytest.raises(SettingError, match="H2GEN_STEPS is 'many'"):
        plan({"H2GEN_STEPS": "many"})


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("H2GEN_SCHEDULER", "H2GEN_SCHEDULER has no effect; did you mean H2GEN_SOLVER?"),
        ("H2GEN_PRESTE", "H2GEN_PRESTE has no effect; did you mean H2GEN_PRESET?"),
        ("H2GEN_CACHE_MEMORY", "H2GEN_CACHE_MEMORY has no effect: --cache-memory cannot be set permanently."),
    ],
)
def test_a_variable_that_was_meant_for_h2gen_and_has_no_effect_is_told(variable: str, words: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(words)}$"):
        plan({variable: "fp8"})


def test_a_variable_of_another_program_is_none_of_our_business(recwarn: pytest.WarningsRecorder) -> None:
    plan({"H2GEN_XYZZY": "1", "h2gen_steps": "3"})
    assert not recwarn.list


def test_every_lasting_setting_is_taken_from_the_environment(tmp_path: Path) -> None:
    texts = {
        "model": "tiny",
        "preset": "fast",
        "size": "64x64",
        "device": "cpu",
        "dtype": "fp32",
        "offload": "auto",
        "memory": "10GB",
        "negative": "dog",
        "format": "webp",
        "solver": "unipc",
        "attention": "native",
        "compile": "true",
        "quantize": "int8",
        "quantize_text": "int8",
        "lora": str(loras.save_smallest(tmp_path / "a.safetensors")),
    }
    for name in USER_DEFAULTS:
        if name not in ("base", "frames", "fps"):  # which are not for every model
            made = plan({f"H2GEN_{name.upper()}": texts.get(name, "3")}, cfg=None if name == "cfg" else 3.0)
            assert made.resolved[name].source == "environment", name


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"model": "dve"}, ModelError, "did you mean 'dev'"),
        ({"preset": "balaced"}, PresetError, "did you mean 'balanced'"),
        ({"tau1": -1.0}, SettingError, "tau1"),
        ({"steps": 0}, SettingError, "steps"),
        ({"size": "0x0"}, SettingError, "size"),
        ({"negative": "dog", "cfg": 1.0}, SettingError, "cfg"),
    ],
)
def test_bad_input_is_found_before_anything_is_loaded(
    given: dict[str, Any], kind: type[UsageError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        plan(**given)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["toaster", "cuda:x", "GPU", ""])
def test_a_device_that_no_machine_has_is_found_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(DeviceError, match=r"no device .* Choose from auto, cuda, mps, xpu, cpu\."):
        plan(device=name)
    assert plan({"H2GEN_DEVICE": "cuda:1"}).load.device == "cuda:1"


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("quantize", "NF4", "nf4"),
        ("quantize", "Int8WO", "int8"),
        ("dtype", "BF16", "bf16"),
        ("offload", "Group", "group"),
        ("device", "CUDA:1", "cuda:1"),
        ("memory", "AUTO", "auto"),
        ("memory", "10G", "10G"),
    ],
)
def test_capitals_in_the_name_of_a_choice_do_not_matter(name: str, text: str, meant: str) -> None:
    assert getattr(plan(**{name: text}).load, name) == meant
    assert getattr(plan({f"H2GEN_{name.upper()}": text}).load, name) == meant


def test_capitals_in_a_format_or_a_solver_do_not_matter() -> None:
    request = plan(format="PNG", solver="flowmatcheulerdiscretescheduler", out="folder")
    assert (request.format, request.settings.solver) == ("png", "own")


def test_a_preset_is_taken_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("tau1 = 0.3\ntau2 = 0.4\n")
    assert plan(preset=str(file)).settings.cache.tau1 == 0.3


def test_a_pictures_preset_is_a_name_and_no_path_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("tau1 = 0.3\ntau2 = 0.4\n")
    assert plan(preset=str(file)).preset == "mine"
    assert plan({"H2GEN_PRESET": str(file)}).preset == "mine"
    assert plan(preset="fast").preset == "fast"


@pytest.mark.posix
def test_a_configuration_that_may_not_be_looked_at_is_none_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path) as home, pytest.warns(RuntimeWarning, match=r"cannot be read; using the defaults"):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
        assert plan().resolved["steps"].source == "model default"


@pytest.mark.parametrize("answer", [RuntimeError("could not determine the home directory"), "~/.config/h2gen"])
def test_without_a_home_folder_there_is_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: RuntimeError | str
) -> None:
    def user_config_dir(*_: object, **__: object) -> str:
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_config_dir", user_config_dir)
    assert plan().resolved["preset"].value == "balanced"
    with pytest.raises(OSError, match="no home folder"):
        config_file()
