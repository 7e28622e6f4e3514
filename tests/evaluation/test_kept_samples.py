"""A frontier that was stopped, or gets more methods, makes only the pictures that are missing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from h2gen.cache import CacheConfig
from h2gen.errors import OutputError, Stopped
from h2gen.evaluation import methods
from h2gen.evaluation.frontier import Frontier, FrontierObserver, frontier
from h2gen.evaluation.methods import Method
from h2gen.evaluation.results import Case, MethodResult, Sample
from h2gen.evaluation.tune.measurement_log import LoggedSamples, MeasurementLog
from tests.evaluation.comparisons import PSNR, SSIM, comparison, picture, trace

CASES = (Case("a cat", 1), Case("a dog", 2))
TUNED = methods.tuned("H2-Cache, a plan", 4, CacheConfig(0, 0, plan="FSFS", forecast=1), "own")


class Counts(FrontierObserver):
    """Counts pictures by method, and interrupts after some."""

    def __init__(self, most: int = 10_000) -> None:
        self.made: Counter[str] = Counter()
        self._most = most

    def ran(self, method: Method, case: int, seconds: float) -> None:
        self.made[method.name] += 1
        if self.made.total() == self._most:
            raise KeyboardInterrupt


def measured(log: Path, most: int = 10_000, **settings: Any) -> tuple[Frontier | None, Counter[str]]:
    """A small frontier, or None if it was interrupted too early, and how many pictures it made by method."""
    counts = Counts(most)
    shared = {"steps": 4, "size": "96x96", "limit": 2, "budgets": (0.5,), "only": "steps,peers", "against": "fb"}
    try:
        found = frontier(observer=counts, log=log, **{**shared, **settings})
    except Stopped as stopped:
        assert "Run the same command to continue." in str(stopped)
        return None, counts.made
    return found, counts.made


def figures(found: Frontier | None) -> dict[str, MethodResult]:
    assert found is not None
    return {method.name: replace(method, pareto=False) for method in found.comparison.methods}


@pytest.mark.slow
def test_only_what_is_new_is_made(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first, made = measured(log)
    assert first is not None and max(made.values()) == 2 and made["uncached"] == 2
    again, none = measured(log)
    assert figures(again) == figures(first) and not none
    more, added = measured(log, against="fb,taylor")
    assert set(figures(more)) > set(figures(first)) and added
    assert {name.split()[0] for name in added} == {"taylor"}
    assert {name: figures(more)[name] for name in figures(first)} == figures(first)


@pytest.mark.slow
def test_a_stop_loses_at_most_the_current_picture(tmp_path: Path) -> None:
    whole, made = measured(tmp_path / "whole.jsonl")
    log = tmp_path / "log.jsonl"
    stopped, before = measured(log, most=5)
    assert stopped is None and before.total() == 5
    resumed, after = measured(log)
    # The fifth was stopped before it was scored; the uncached pictures are on the disk.
    assert before.total() + after.total() == made.total() + 1
    assert whole is not None and resumed is not None
    same = [(m.name, m.share, m.scores) for m in whole.comparison.methods]
    assert [(m.name, m.share, m.scores) for m in resumed.comparison.methods] == same


@pytest.mark.slow
def test_a_report_of_known_methods_has_their_pictures(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    measured(log, only="steps", against=None)
    _, made = measured(log, only="steps", against=None, report=tmp_path / "one")
    assert made  # the first run had no report, and kept only the uncached pictures
    _, none = measured(log, only="steps", against=None, report=tmp_path / "two")
    assert not none
    names = [sorted(path.name for path in (tmp_path / which / "pictures").iterdir()) for which in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) >= 4


def sample(case: int = 0, **changed: Any) -> Sample:
    like = comparison().methods[1].samples[0]
    scores = {"psnr": 30.0, "ssim": 0.9}
    return replace(like, case=case, picture="", scores=scores, truth_scores={}, trace=(), **changed)


def opened(log: MeasurementLog, **more: Any) -> LoggedSamples:
    return LoggedSamples(log, CASES, (PSNR, SSIM), **more)


def test_a_sample_is_found_again_by_all_that_it_depends_on(tmp_path: Path) -> None:
    with MeasurementLog(tmp_path / "a.jsonl", {}) as log:
        opened(log).keep(TUNED, 1, sample(1), picture(1))
    with MeasurementLog(tmp_path / "a.jsonl", {}) as log:
        kept = opened(log)
        assert kept.recall(TUNED, 1) == sample(1)
        assert kept.recall(TUNED, 0) is None
        other = methods.tuned(TUNED.label, 4, replace(TUNED.cache, plan="FSSS"), "own")
        assert kept.recall(other, 1) is None
        assert kept.recall(replace(TUNED, steps=5), 1) is None
        newer = LoggedSamples(log, CASES, (replace(PSNR, source="another library"), SSIM))
        assert newer.recall(TUNED, 1) is None


def test_h2_caches_own_code_is_part_of_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from h2gen.evaluation.tune import measurement_log

    fewer = methods.fewer(2, 4)
    with MeasurementLog(tmp_path / "a.jsonl", {}) as log:
        kept = opened(log)
        for method in (TUNED, fewer):
            kept.keep(method, 0, sample(), picture(0))
        monkeypatch.setattr(measurement_log, "_own_code", lambda: "changed")
        assert kept.recall(TUNED, 0) is None and kept.recall(fewer, 0) is not None


def test_pictures_and_decisions_come_back_exactly(tmp_path: Path) -> None:
    steps = tuple(trace(TUNED.cache, 4))
    image = picture(0)
    with MeasurementLog(tmp_path / "a.jsonl", {}) as log:
        kept = opened(log, pictures=tmp_path / "p", every=True)
        kept.keep(TUNED, 0, replace(sample(), trace=steps), image)
        found = kept.recall(TUNED, 0)
        assert found is not None and [step.to_json() for step in found.trace] == [step.to_json() for step in steps]
        back = kept.picture(TUNED, 0)
        assert back is not None and ImageChops.difference(back, image).getbbox() is None
        assert opened(log).picture(TUNED, 0) is None
        (tmp_path / "p").rename(tmp_path / "gone")
        assert kept.recall(TUNED, 0) is None  # a report needs it
        (tmp_path / "p").write_text("in the way")
        with pytest.raises(OutputError, match="Cannot write"):
            kept.keep(TUNED, 0, sample(), Image.new("RGB", (8, 8)))


def test_scores_of_a_search_are_kept_by_method_and_case(tmp_path: Path) -> None:
    with MeasurementLog(tmp_path / "a.jsonl", {}) as log:
        assert opened(log).value(TUNED, Case("a fox", 3), lambda: 0.5) == 0.5
    with MeasurementLog(tmp_path / "a.jsonl", {}) as log:
        assert opened(log).value(TUNED, Case("a fox", 3), lambda: 0.7) == 0.5
        assert opened(log).value(TUNED, Case("a fox", 4), lambda: 0.7) == 0.7
        assert opened(log).value(methods.fewer(2, 4), Case("a fox", 3), lambda: 0.9) == 0.9


def test_timings_of_several_sessions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with MeasurementLog(path, {}) as log:
        kept = opened(log)
        kept.keep(TUNED, 0, sample(), picture(0))
        assert kept.notices == []
    lines = path.read_text().splitlines()
    earlier = json.loads(lines[-1])
    earlier["value"]["session"] = "2020-01-01T00:00:00+00:00"
    path.write_text("\n".join([lines[0], json.dumps(earlier)]) + "\n")
    with MeasurementLog(path, {}) as log:
        kept = opened(log)
        kept.recall(TUNED, 0)
        assert kept.notices == []
        kept.keep(TUNED, 1, sample(1), picture(1))
        (line,) = kept.notices
        assert line.startswith(
            "The seconds come from 2 sessions, the first begun at 2020-01-01T00:00:00+00:00, the last"
        )
