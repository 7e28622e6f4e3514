"""``h2gen.compare`` from Python: what it returns, writes and reports, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import h2gen
from h2gen.errors import SettingError, Stopped
from h2gen.evaluation.compare import prepare_comparison
from h2gen.evaluation.comparison_run import FinishedRun
from h2gen.evaluation.methods import Method
from h2gen.evaluation.metrics import MetricInfo
from tests.evaluation.comparisons import comparison

SMALL: dict[str, Any] = {"steps": 6, "cfg": 1, "seed": 7, "size": "64x64", "preset": "paper", "tau1": 0.2, "tau2": 0.3}
QUICK: dict[str, Any] = {"repeat": 1, "metrics": "psnr,ssim"}


class Watch(h2gen.CompareObserver):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.partial: Any = None
        self.session: Any = None
        self.stop_in = -1

    def loaded(self, session: h2gen.Session) -> None:
        self.session = session
        self.events.append("loaded")

    def ran(self, method: Any, case: int, seconds: float) -> None:
        self.events.append("ran")
        if case == self.stop_in:
            self.session.interrupt()

    def compared(self, comparison: Any) -> None:
        self.partial = comparison
        self.events.append("compared")

    def wrote(self, path: Path) -> None:
        self.events.append(path.name)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_returns_all_figures_and_writes_nothing_unasked(here: Path) -> None:
    found = h2gen.compare("a cat", **{**SMALL, "tau1": (0.2, 0.5)}, options=h2gen.CompareOptions(**QUICK, row=2))
    assert [method.name for method in found.methods if method.kind == "h2"] == ["h2 0.2 0.3", "h2 0.5 0.3"]
    assert found.chosen == "h2 0.5 0.3"
    assert found.method(found.chosen).scores["psnr"].mean > 0
    assert [case.prompt for case in found.cases] == ["a cat"]
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_the_observer_has_the_figures_before_any_file_is_written(here: Path) -> None:
    watch = Watch()
    options = h2gen.CompareOptions(**QUICK, report=here / "rep", images=True, save_preset="mine")
    h2gen.compare("a cat", **SMALL, options=options, observer=watch)
    assert watch.events[0] == "loaded"
    events = [event for event in watch.events if event != "ran"]
    assert events[:4] == ["loaded", "compared", "index.html", "a-cat-7-compare.png"] and events[-1] == "mine.toml"
    assert (here / "rep" / "a-cat-7-compare.png").is_file()


@pytest.mark.slow
def test_an_interrupted_comparison_still_has_its_finished_pictures(here: Path) -> None:
    (here / "p.txt").write_text("a cat\na dog\n")
    watch = Watch()
    watch.stop_in = 1
    with pytest.raises(Stopped, match="figures cover 1 of 2 pictures"):
        h2gen.compare(prompts=here / "p.txt", **SMALL, options=h2gen.CompareOptions(**QUICK), observer=watch)
    assert [case.prompt for case in watch.partial.cases] == ["a cat"]


@pytest.mark.slow
def test_a_stop_once_all_have_a_picture_says_that_runs_are_missing() -> None:
    class Late(Watch):
        def planned(self, methods: Sequence[Method], runs: Mapping[str, int], metrics: Sequence[MetricInfo]) -> None:
            self.methods = len(methods)

        def ran(self, method: Method, case: int, seconds: float) -> None:
            self.events.append("ran")
            if self.events.count("ran") == self.methods + 1:
                self.session.interrupt()

    watch = Late()
    options = h2gen.CompareOptions(**{**QUICK, "repeat": 3})
    with pytest.raises(Stopped, match=r"^Stopped before all runs were done; "):
        h2gen.compare("a cat", **SMALL, options=options, observer=watch)
    assert len(watch.partial.methods) == watch.methods
    assert sorted({method.seconds.runs for method in watch.partial.methods}) == [1, 2]


def test_wrong_arguments_are_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(TypeError, match="'step'; did you mean 'steps'"):
        h2gen.compare("a cat", step=1)
    with pytest.raises(SettingError, match="Give a prompt"):
        h2gen.compare()
    with pytest.raises(SettingError, match="repeat is 0"):
        h2gen.CompareOptions(repeat=0)
    with pytest.raises(SettingError, match="tau1 is 'x'"):
        h2gen.compare("a cat", tau1="x")
    with pytest.raises(SettingError, match="The cache is off"):
        h2gen.compare("a cat", preset="off")


def test_a_preset_that_saves_no_time_is_not_saved_in_silence(own_home: Path) -> None:
    class Warned(Watch):
        def warned(self, message: str) -> None:
            self.events.append(message)

    found = comparison(5, 1)
    for name, speedup in (("slow", 0.97), ("quick", 1.9)):
        watch = Warned()
        methods = [found.methods[0], replace(found.methods[1], speedup=speedup), *found.methods[2:]]
        options = h2gen.CompareOptions(save_preset=name)
        prepared = prepare_comparison("a cat", options=options)
        prepared._write(FinishedRun(replace(found, methods=tuple(methods)), {}, None), watch)
        told = [event for event in watch.events if "saves no time: it is 0.97 times as fast" in event]
        assert len(told) == (name == "slow") and f"{name}.toml" in watch.events
