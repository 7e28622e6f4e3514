"""``h2gen.tune`` from Python: what it returns and writes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import h2gen
from h2gen.errors import OutputError, SettingError
from h2gen.evaluation.frontier import FrontierOptions
from h2gen.evaluation.tune.options import parse_budgets
from h2gen.settings.profiles import read_profile


class Watch(h2gen.TuneObserver):
    def __init__(self) -> None:
        self.tried_at: list[float] = []
        self.written: list[str] = []

    def tried(self, budget: float, *_: object) -> None:
        self.tried_at.append(budget)

    def wrote(self, path: Path) -> None:
        self.written.append(path.name)


@pytest.mark.slow
def test_it_writes_a_profile_and_returns_it_with_its_comparison(tmp_path: Path) -> None:
    watch = Watch()
    options = h2gen.TuneOptions(
        search=1, check=1, budgets=(0.5,), tries=0, threshold_tries=2, profile=tmp_path / "p.toml"
    )
    found = h2gen.tune(steps=8, cfg=1, size="64x64", options=options, observer=watch)
    assert watch.written == ["p.toml", "p.svg"] and set(watch.tried_at) == {0.5}
    read = read_profile(tmp_path / "p.toml")
    made_by = "--search 1 --check 1 --budgets 0.5 --tries 0 --threshold-tries 2 --steps 8 --size 64x64 --cfg 1"
    assert read.measured["command"] == f"h2gen tune {made_by}"
    assert read.key == found.profile.key and read.key.steps == 8
    assert [choice.label for choice in read.choices] == [choice.label for choice in found.profile.choices]
    labels = {method.label for method in found.comparison.methods}
    assert {choice.label for choice in found.profile.choices} < labels


def test_wrong_arguments_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="search is 0"):
        h2gen.TuneOptions(search=0)
    with pytest.raises(SettingError, match="above 0 and below 1"):
        h2gen.TuneOptions(budgets=(2.0,))
    with pytest.raises(SettingError, match="below 8"):
        h2gen.tune(steps=4)
    with pytest.raises(SettingError, match=r"ends in \.toml"):
        h2gen.tune(options=h2gen.TuneOptions(profile=tmp_path / "p.txt"))
    with pytest.raises(OutputError, match="holds a NUL"):
        h2gen.tune(options=h2gen.TuneOptions(profile=tmp_path / "a\0b.toml"))
    with pytest.raises(TypeError, match="'step'; did you mean 'steps'"):
        h2gen.tune(step=4)


def test_budgets_are_read_largest_first_without_repetitions() -> None:
    assert parse_budgets("0.2,0.5,0.2") == (0.5, 0.2)


def test_budgets_in_python_are_read_as_on_the_command_line() -> None:
    for given in ("0.2,0.5,0.2", (0.2, 0.5, 0.2), [0.5, "0.2"]):
        assert FrontierOptions(budgets=given).budgets == h2gen.TuneOptions(budgets=given).budgets == (0.5, 0.2)  # type: ignore[arg-type]
    for wrong in (0.5, (), "half", [None], math.nan):
        with pytest.raises(SettingError, match="shares of the blocks"):
            FrontierOptions(budgets=wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="A budget is nan"):
        FrontierOptions(budgets=[math.nan])
