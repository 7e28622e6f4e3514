"""A comparison of real pictures of the bundled model: which methods are compared, and whether the figures are right."""

from __future__ import annotations

import gc
import math
import os
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from h2gen.cache.config import CacheConfig
from h2gen.errors import OutputError, SettingError
from h2gen.evaluation import baselines, builtin_prompts, comparison_run, methods
from h2gen.evaluation.baselines import BaselineSearch
from h2gen.evaluation.comparison_run import ComparisonRun
from h2gen.evaluation.make_image import ImageMaker, MadeImage
from h2gen.evaluation.method_results import Tally
from h2gen.evaluation.methods import Method, fewer
from h2gen.evaluation.metrics import MetricInfo, choose_metrics
from h2gen.evaluation.options import CompareObserver, MethodOptions
from h2gen.evaluation.peers import PEERS, EqualCost, choose_peers
from h2gen.evaluation.recommend import recommended
from h2gen.evaluation.results import Case, Comparison, Sample
from h2gen.evaluation.truths import Truths
from h2gen.evaluation.video_metrics import VideoMetrics
from h2gen.evaluation.videos import Video

CASES = [Case("a cat", 1), Case("a red apple", 2)]
CACHE = CacheConfig(0.3, 0.3)


class Watch(CompareObserver):
    """Records what happens, and does something at each run."""

    def __init__(self, at_run: Any = lambda _number: None) -> None:
        self.runs: list[str] = []
        self.parts: list[str] = []
        self.expected = 0
        self.again: list[str] = []
        self._at_run = at_run

    def began(self, what: str) -> None:
        self.parts.append(what)

    def planned(self, methods: Sequence[Method], runs: Mapping[str, int], metrics: Sequence[MetricInfo]) -> None:
        self.expected += sum(runs.values())

    def repeated(self, methods: Sequence[Method], case: int) -> None:
        self.again += [f"{method.name} {case}" for method in methods]

    def ran(self, method: Method, case: int, seconds: float) -> None:
        self.runs.append(method.name)
        self._at_run(len(self.runs))

    def scored(self, method: Method, sample: Sample) -> None:
        self.parts.append(f"{method.name} {sample.case}")


def comparing(tiny: Any, watch: Watch, folder: Path | None = None, side: int = 128, **options: Any) -> ComparisonRun:
    settings = tiny.settings("-", seed=0, steps=8, cfg=1.0, width=side, height=side, cache=None)
    defaults: dict[str, Any] = {"caches": [CACHE], "repeat": 1}
    metrics = choose_metrics("psnr,ssim")
    return ComparisonRun(
        tiny, CASES, settings, metrics, MethodOptions(**{**defaults, **options}), observer=watch, folder=folder
    )


def compared(tiny: Any, watch: Watch | None = None, **more: Any) -> Comparison:
    made = comparing(tiny, watch or Watch(), **more)
    made.run()
    return made.result(recommended)


@pytest.mark.slow
def test_the_uncached_picture_the_cached_one_and_plain_steps_that_take_as_long(tiny: Any, tmp_path: Path) -> None:
    watch = Watch()
    found = compared(tiny, watch, folder=tmp_path, repeat=2)
    plain, cached, *others = found.methods
    assert (plain.kind, cached.kind, cached.name) == ("reference", "h2", "h2 0.3 0.3")
    assert found.chosen == cached.name
    assert {method.kind for method in others} <= {"steps", "solver"}
    assert len(watch.runs) == sum(method.seconds.runs for method in found.methods)
    assert {method.seconds.runs % 4 for method in found.methods} == {0}
    assert round(8 * cached.share) in {
        method.steps for method in found.methods if method.kind in ("steps", "reference")
    }
    # Methods take turns, so that a machine that slows down is fair to all.
    assert watch.runs[:2] == ["uncached", cached.name] and len(set(watch.runs[: len(watch.runs) // 4])) > 2

    assert (plain.share, plain.speedup, plain.identical) == (1.0, 1.0, 2)
    assert math.isinf(plain.scores["psnr"].worst) and plain.scores["ssim"].mean == 1
    assert 0 < cached.share < 1 and cached.seconds.runs >= 4
    for method in found.methods:
        for case, sample in zip(CASES, method.samples, strict=True):
            settings = tiny.settings(case.prompt, seed=case.seed, steps=method.steps, cfg=1.0, cache=None)
            if method.kind == "solver":
                continue
            made = tiny.run(tiny.settings(case.prompt, CACHE if method.kind == "h2" else None, **_plain(settings)))
            with Image.open(tmp_path / sample.picture) as kept:
                assert np.array_equal(np.asarray(kept), np.asarray(made.image)), method.name
            if method.kind == "h2":
                assert sample.share == made.trace.summary.share
                assert len(sample.trace) == 8


def _plain(settings: Any) -> dict[str, Any]:
    return {"seed": settings.seed, "steps": settings.steps, "cfg": settings.cfg}


def test_a_cache_that_never_hits_is_reported_as_identical(tiny: Any) -> None:
    found = compared(tiny, caches=[CacheConfig(1e-9, 1e-9)], baselines=False)
    cached = found.method("h2 1e-09 1e-09")
    assert cached.identical == 2 and cached.share == 1.0
    assert math.isinf(cached.scores["psnr"].mean) and cached.scores["ssim"].worst == 1.0
    assert found.to_json()["methods"][1]["scores"]["psnr"]["mean"] == "inf"


def test_the_truth_is_the_picture_of_400_steps() -> None:
    truth = methods.truth(8)
    assert (truth.steps, truth.share, truth.label) == (400, 50.0, "uncached, 400 steps")


@pytest.mark.slow
def test_against_the_truth_and_further_numbers_of_steps(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "TRUTH_STEPS", 40)  # of 400, which take ten times as long
    found = compared(tiny, side=64, baselines=False, fewer=[4], truth=True)
    assert [method.name for method in found.methods] == ["uncached", "h2 0.3 0.3", "steps 4", "unipc 4", "truth"]
    truth = found.method("truth")
    assert truth.steps == 40 and truth.share == 5.0 and truth.truth_scores == {}
    assert found.method("steps 4").share == found.method("unipc 4").share == 0.5
    # The higher-order solver is closer to the result of many steps than Euler with the same steps.
    assert found.method("unipc 4").truth_scores["psnr"].mean > found.method("steps 4").truth_scores["psnr"].mean


@pytest.mark.slow
def test_peers_run_at_equal_cost(tiny: Any) -> None:
    found = compared(tiny, baselines=False, peers=choose_peers("fb,taylor"))
    cached = found.method("h2 0.3 0.3")
    peers = [method for method in found.methods if method.kind == "peer"]
    assert len(peers) == 2
    for peer in peers:
        told = any(peer.label.split(" ")[0] in notice for notice in found.notices)
        assert abs(peer.share - cached.share) <= 0.02 or told
        assert peer.detail["target_share"] == cached.share
        assert 0 < peer.share < 1 and math.isfinite(peer.scores["psnr"].mean)
    # Nothing of a peer is left on the model.
    assert compared(tiny, baselines=False).method("uncached").identical == 2
    assert not tiny.pipe.transformer.is_cache_enabled


def test_a_peer_that_was_measured_before_is_neither_fitted_nor_chosen_again(tiny: Any) -> None:
    peer: Any = PEERS["l2p"]
    chosen = methods.peer(EqualCost(replace(peer, first=3, ridge=0.1), (4,), 0.5, 0.5, 1), 8, 1)
    maker = ImageMaker(tiny, CASES, tiny.settings("-", seed=0, steps=8, cfg=1.0, width=64, height=64, cache=None))
    known = MadeImage(Image.new("RGB", (64, 64)), 1.0, 0.5, ())

    def measure(method: Method, case: int) -> MadeImage:
        raise AssertionError(f"{method.name} was made")

    search = baselines.BaselineSearch(
        maker,
        MethodOptions(baselines=False, peers=[peer], budgets=[0.5], at_budgets=()),
        CompareObserver(),
        measure,
        lambda method, _case: known if method.name == chosen.name else None,
    )
    assert [method.name for method in search.methods()] == ["uncached", chosen.name]
    assert search.notices == []


@pytest.mark.slow
def test_what_a_peer_is_fitted_and_chosen_on_is_not_compared(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []
    make = ImageMaker.make

    def noting(self: ImageMaker, method: Method, case: int) -> MadeImage:
        made.append((method.kind, self.cases[case].prompt))
        return make(self, method, case)

    monkeypatch.setattr(ImageMaker, "make", noting)
    monkeypatch.setattr(builtin_prompts, "TUNING", ("a rose", "a guitar"))
    monkeypatch.setattr(baselines, "SCORED", 2)
    found = compared(tiny, side=64, baselines=False, peers=choose_peers("meancache"))
    (peer,) = [method for method in found.methods if method.kind == "peer"]
    assert peer.label == f"MeanCache, {peer.detail['computed_steps']} steps computed"
    assert peer.share == peer.detail["computed_steps"] / 8
    compared_prompts = [case.prompt for case in found.cases]
    asked = [prompt for kind, prompt in made if kind == "peer"]
    assert sorted(asked[-2:]) == sorted(compared_prompts)  # measured once each, at the end
    assert set(asked[:-2]) == {"a rose", "a guitar"}
    assert len(asked) == 2 + 2 * 6  # each setting in turn


@pytest.mark.slow
def test_stopped_after_a_case_its_figures_are_those_of_that_case(tiny: Any) -> None:
    def stop(number: int) -> None:
        if number == 3:
            tiny.interrupt()

    made = comparing(tiny, Watch(stop), baselines=False)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.finished == 1
    found = made.result(recommended)
    assert len(found.cases) == 1 and "Stopped after 1 of 2 pictures per method." in found.notices
    assert [len(method.samples) for method in found.methods] == [1, 1]


def test_stopped_in_the_first_case_the_figures_are_those_of_the_methods_that_made_it(tiny: Any) -> None:
    def stop(number: int) -> None:
        if number == 2:
            tiny.interrupt()

    watch = Watch(stop)
    made = comparing(tiny, watch, side=64, baselines=False, fewer=[2])
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert watch.parts[-2:] == ["uncached 0", "h2 0.3 0.3 0"]  # scored as soon as they were made
    found = made.result(recommended)
    assert [method.name for method in found.methods] == ["uncached", "h2 0.3 0.3"] and len(found.cases) == 1
    assert "Stopped before these were measured: 2 steps; 2 steps, UniPC." in found.notices


def test_each_method_runs_twice_and_a_third_time_where_its_two_runs_differ(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ImageMaker.make
    clock = {"uncached": [1.0, 1.05], "h2 0.3 0.3": [0.5, 0.7, 0.6], "steps 2": [0.2, 0.2]}
    clock = {name: 2 * times for name, times in clock.items()}  # of two cases

    def timed(maker: ImageMaker, method: Method, case: int) -> MadeImage:
        one = make(maker, method, case)
        if method.name in clock and ready:
            one = replace(one, seconds=clock[method.name].pop(0))
        return one

    ready: list[bool] = []
    watch = Watch()
    monkeypatch.setattr(watch, "planned", lambda *_: ready.append(True))
    monkeypatch.setattr(ImageMaker, "make", timed)
    monkeypatch.setattr(BaselineSearch, "in_steps", lambda search, count: iter([fewer(count, 8)]))
    found = compared(tiny, watch, side=64, baselines=False, fewer=[2], repeat=None)
    assert {method.name: method.seconds.runs for method in found.methods} == {
        "uncached": 4, "h2 0.3 0.3": 6, "steps 2": 4
    }  # fmt: skip
    assert found.method("h2 0.3 0.3").seconds.median == 0.6
    assert watch.again == ["h2 0.3 0.3 0", "h2 0.3 0.3 1"]
    assert watch.runs[:7] == ["uncached", "h2 0.3 0.3", "steps 2", "h2 0.3 0.3", "steps 2", "uncached", "h2 0.3 0.3"]


def test_of_several_runs_only_the_first_image_is_kept(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make = ImageMaker.make
    images: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watched(maker: ImageMaker, method: Method, case: int) -> MadeImage:
        one = make(maker, method, case)
        images.append(weakref.ref(one.image))
        return one

    def count(_number: int) -> None:
        gc.collect()
        alive.append(sum(image() is not None for image in images))

    monkeypatch.setattr(ImageMaker, "make", watched)
    compared(tiny, Watch(count), side=64, baselines=False, repeat=4)
    # Two methods' images of the first case, which are shown, those of this case, and the one just made.
    assert len(alive) == 16 and max(alive) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("video", [False, True])
def test_the_truth_is_on_disk_when_methods_are_added_later(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: bool
) -> None:
    make, few = ImageMaker.make, iter([{3}])
    truths: list[weakref.ref[Any]] = []

    def watched(maker: ImageMaker, method: Method, case: int) -> MadeImage:
        one = make(maker, method, case)
        if video:
            one = replace(one, image=Video(np.stack([np.asarray(one.image)] * 2), 8))
        if method.kind == "truth":
            truths.append(weakref.ref(one.image))
        return one

    def missing(_results: Any) -> set[int]:
        gc.collect()
        assert [truth() is not None for truth in truths] == [True, False]  # the first case's images are shown
        return next(few, set())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(methods, "TRUTH_STEPS", 12)
    monkeypatch.setattr(ImageMaker, "make", watched)
    monkeypatch.setattr(comparison_run, "missing_rivals", missing)
    monkeypatch.setattr(BaselineSearch, "in_steps", lambda _, count: iter([fewer(count, 8)] if count == 3 else []))
    made = comparing(tiny, Watch(), side=64, truth=True)
    if video:
        made._metrics = VideoMetrics(made._metrics)
    made.run()
    monkeypatch.undo()
    found = made.result(recommended)
    added = found.method("steps 3")
    assert added.truth_scores["psnr"].mean < found.method("uncached").truth_scores["psnr"].mean
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_under_the_truths_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match=r"Cannot keep the pictures of 400 steps: No such file .*; set TMPDIR to"):
        Truths().keep(0, Image.new("RGB", (8, 8)))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_one_line_and_what_could_not_be_written_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Path("/dev/full").open("w+b")  # noqa: SIM115 - the test closes it as a run would
    monkeypatch.setattr("h2gen.evaluation.truths.nameless_file", lambda: full)
    truths = Truths()
    with pytest.raises(
        OutputError, match=r"^Cannot keep the pictures of 400 steps: No space left on device; set TMPDIR"
    ):
        truths.keep(0, Image.new("RGB", (8, 8)))
    truths.close()
    assert truths.find(0) is None


def test_a_full_disk_is_not_a_failure_of_the_method_that_met_it(tiny: Any) -> None:
    def full(*_: Any) -> MadeImage:
        raise OutputError("Cannot write 'log.jsonl': No space left on device.")

    made = comparing(tiny, Watch(), side=64, baselines=False)
    peer = Tally(methods.peer(EqualCost(PEERS["fb"], 0.1, 0.5, 0.5, 1), 8, 1))
    made._tallies = [peer]
    with pytest.raises(OutputError, match="No space left"):
        made._attempt(peer, full)
    settings = tiny.settings("-", seed=0, steps=8, cfg=1.0, width=64, height=64, cache=None)
    options = MethodOptions(baselines=False, peers=choose_peers("fb"), budgets=[0.5], at_budgets=())
    search = BaselineSearch(ImageMaker(tiny, CASES, settings), options, CompareObserver(), full)
    with pytest.raises(OutputError, match="No space left"):
        search.methods()
    assert search.notices == []


def test_nothing_finished_is_no_comparison(tiny: Any) -> None:
    with pytest.raises(SettingError, match="No picture has been compared"):
        comparing(tiny, Watch()).result(recommended)
