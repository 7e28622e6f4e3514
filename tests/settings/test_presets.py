"""Presets: the shipped ones are right, and untrusted files are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from h2gen.cache import CacheConfig
from h2gen.errors import OutputError, PresetError
from h2gen.settings.presets import DEFAULT, check_new, list_presets, load_preset, read_preset, user_folder
from tests.locked import locked


def test_the_presets_that_the_readme_promises_are_there_and_say_what_they_are_for() -> None:
    found = {preset.name: preset for preset in list_presets()}
    assert {"paper", "h2", "quality", "balanced", "fast", "off"} <= set(found)
    assert DEFAULT in found
    assert all(preset.description.endswith(".") for preset in found.values())


def test_h2_is_the_papers_two_stages_and_closer_than_its_thresholds() -> None:
    h2, paper = load_preset("h2"), load_preset("paper")
    assert h2.config.tau1 and h2.config.tau2 and not (h2.config.plan or h2.config.tolerance)
    assert h2.figures["share"] <= 0.5 and h2.figures["psnr_mean"] > paper.figures["psnr_mean"] + 3


def test_paper_is_what_the_authors_run() -> None:
    assert load_preset("paper").config == CacheConfig(0.15, 0.22)


def test_off_is_off() -> None:
    assert not load_preset("off").config.enabled


@pytest.mark.parametrize("name", ["quality", "balanced", "fast"])
def test_chosen_presets_quote_the_figures_they_were_chosen_by(name: str) -> None:
    assert {"share", "psnr_mean", "psnr_worst", "measured_on"} <= set(load_preset(name).figures)


def test_the_users_own_presets_lie_beside_the_shipped_ones_and_hide_them() -> None:
    user_folder().mkdir(parents=True)
    (user_folder() / "fast.toml").write_text("tau1 = 0.9\ntau2 = 0.9\n")
    (user_folder() / "mine.toml").write_text("tau1 = 0.1\ntau2 = 0.1\nmax_consecutive = 2\n")
    assert load_preset("fast").config.tau1 == 0.9
    assert load_preset("mine").config.max_consecutive == 2
    assert "mine" in {preset.name for preset in list_presets()}


@pytest.mark.posix
def test_where_the_users_own_may_not_be_looked_at_the_shipped_ones_are_listed_and_none_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path) as home:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
        assert "paper" in {preset.name for preset in list_presets()}
        with pytest.raises(OutputError, match="Cannot write to the folder"):
            check_new("mine")


def test_an_unknown_preset_is_answered_with_the_closest() -> None:
    with pytest.raises(PresetError, match="did you mean 'quality'"):
        load_preset("qualty")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tau1 = 0.1", "lacks tau2"),
        ("", "tau1 and tau2"),
        ("tau1 = 0.1\ntau2 = 0.1\ntua3 = 1", "unknown key 'tua3'"),
        ("tau1 = 0.1\ntau2 = 0.1\nwarmup = 1", "did you mean 'warmup_steps'"),
        ("tau1 = '0.1'\ntau2 = 0.1", "tau1 is '0.1'"),
        ("tau1 = nan\ntau2 = 0.1", "tau1 is nan"),
        ("tau1 = -1\ntau2 = 0.1", "tau1 is -1"),
        ("tau1 = true\ntau2 = 0.1", "tau1 is True"),
        ("tau1 = 0.1\ntau2 = 0.1\nfinal_steps = 1.5", "final_steps is 1.5"),
        ("tau1 = 0.1\ntau2 = 0.1\nforecast = 2", "forecast is 2"),
        ("tau1 = 0.1\ntau2 = 0.1\nbudget = 1", "budget is 1"),
        ("tau1 = 0.1\ntau2 = 0.1\nhierarchy = 'x'", "forced or checked"),
        ("plan = 'FXR'", "'X' at step 2"),
        ("plan = ''", "tau1 and tau2"),
        ("tau1 = 0.1\ntau2 = 0.1\ndescription = 3", "description is 3"),
        ("tau1 = 0.1\ntau2 = 0.1\nfigures = 3", "figures is 3"),
        ("tau1 = ", "not valid TOML"),
        ("tau1 = 0.1 # \udcff", "not UTF-8"),
        ("#" * 70_000, "larger than 64 KiB"),
        ("a = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_bad_preset_file_is_named_with_what_is_wrong_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PresetError) as caught:
        read_preset(file)
    assert words in str(caught.value)
    assert "bad.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 9999 + " = 1",
        "description = [" + "1, " * 9999 + "]",
        f"tau1 = 0.1\ntau2 = '{'x' * 9999}'",
        f"tau1 = 0.1\ntau2 = 0.1\npfs = '{'x' * 9999}'",
        f"plan = '{'F' * 50_001}'",
        f"tau1 = 0.1\ntau2 = 0.1\nbudget = '{'x' * 9999}'",
    ],
    ids=range(6),
)
def test_a_strangers_value_is_not_told_at_length(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(PresetError) as caught:
        read_preset(tmp_path / "bad.toml")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_an_unknown_preset_of_a_long_name_is_not_told_at_length() -> None:
    with pytest.raises(PresetError) as caught:
        load_preset("x" * 9999)
    assert len(str(caught.value)) < 300


def test_a_preset_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match=r"There is no preset file .*gone\.toml"):
        load_preset(str(tmp_path / "gone.toml"))
    with pytest.raises(PresetError, match="Is a directory"):
        load_preset(f"{tmp_path}/")
