"""What a cached run is compared with follows from the medians that are printed, whatever noise is in them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from h2gen.evaluation.method_results import remarks
from h2gen.evaluation.report import headline_and_summary
from h2gen.evaluation.results import MethodResult, Score, timing
from h2gen.evaluation.rivals import (
    missing_rivals,
    same_time,
    steps_of_share,
    steps_of_time,
    steps_within,
    timing_doubts,
)
from tests.evaluation.comparisons import comparison

EXAMPLE = comparison()


def result(
    kind: str, steps: int, seconds: Sequence[float], psnr: float = 30.0, share: float | None = None
) -> MethodResult:
    """A method with these timed runs."""
    name = {"reference": "uncached", "h2": "h2 cached"}.get(kind, f"{kind} {steps}")
    label = {"reference": f"uncached, {steps} steps", "h2": "H2-Cache, tolerance 0.002"}.get(kind, f"{steps} steps")
    own = timing(seconds)
    return replace(
        EXAMPLE.methods[1],
        name=name,
        label=label,
        kind=kind,
        steps=steps,
        share=steps / 28 if share is None else share,
        seconds=own,
        speedup=20.0 / own.median,
        scores={"psnr": Score(psnr, psnr, 0)},
        truth_scores={},
        identical=0,
    )


def measured(cached: Sequence[float], plain: Mapping[int, Sequence[float]], share: float = 0.5) -> list[MethodResult]:
    """The uncached run of 28 steps in 20 seconds, a cached one, and uncached ones by their steps."""
    found = [result("reference", 28, [20.0] * 3), result("h2", 28, cached, 45.0, share)]
    return [*found, *(result("steps", steps, seconds) for steps, seconds in plain.items())]


def told(results: Sequence[MethodResult]) -> tuple[str, str]:
    found = replace(EXAMPLE, methods=tuple(results), chosen="h2 cached", notices=())
    headline, sentences = headline_and_summary(found)
    return headline, " ".join(sentences).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("share", "steps"),
    [(0.5, 14), (0.48, 13), (0.0, 1), (1.0, 28), (1.4, 28)],
    ids=["half", "rounded", "none", "all", "more"],
)
def test_as_many_blocks_are_a_rounded_number_of_steps(share: float, steps: int) -> None:
    assert steps_of_share(share, 28) == steps


@pytest.mark.parametrize(
    ("plain", "cached", "steps"),
    [
        ({28: 28.0}, 14.0, 14),
        ({28: 28.0, 14: 10.0}, 19.0, 21),  # between the runs around it
        ({28: 28.0, 14: 16.0}, 8.0, 7),  # below all of them
        ({28: 20.0, 7: 5.22}, 12.0, 17),
        ({20: 12.9, 16: 17.1, 28: 20.0}, 15.0, 18),  # noise turned two runs around
        ({28: 28.0}, 0.1, 1),
        ({28: 28.0}, 28.0, None),
    ],
)
def test_as_much_time_is_read_off_the_runs_around_it(plain: dict[int, float], cached: float, steps: int | None) -> None:
    assert steps_of_time(plain, cached) == steps


def test_a_first_timing_that_noise_spoiled_does_not_choose_the_rival() -> None:
    """The cached run took 12 s in all, and 7 steps 5.22 s: more steps have to be measured before anything is said."""
    spoiled = measured([12.0, 11.9, 12.2], {7: [5.2, 5.22, 5.3], 14: [10.1, 10.2, 10.4]})
    assert missing_rivals(spoiled) == [17]
    assert missing_rivals([*spoiled, result("steps", 17, [12.1, 11.8, 11.9])]) == []
    _, words = told(spoiled)
    assert "No run with fewer steps took the same time. With as many blocks, 14 steps without a cache (10.2 s)" in words
    assert "In the same time" not in words and "7 steps" not in words
    _, words = told([*spoiled, result("steps", 17, [12.1, 11.8, 11.9])])
    assert "In the same time, 17 steps without a cache (11.9 s) are farther away" in words


@pytest.mark.parametrize("seed", range(20))
def test_on_a_busy_machine_a_rival_of_the_same_time_is_found_in_a_few_rounds(seed: int) -> None:
    dice = random.Random(seed)

    def runs(seconds: float) -> list[float]:
        return [seconds * dice.choice([1.0, 1.0, 1.0, 1.1, 1.9]) for _ in range(5)]

    found = measured(runs(12.0), {7: runs(5.5)})
    for _ in range(4):
        for steps in missing_rivals(found):
            found.append(result("steps", steps, runs(0.5 + 0.7 * steps)))
    assert missing_rivals(found) == []
    ours = found[1].seconds.median
    apart = [r for r in found if r.kind == "steps" and not same_time(r.seconds.median, ours)]
    _, words = told(found)
    for rival in apart:
        assert f"In the same time, {rival.label} " not in words, (ours, rival.seconds.median)


def test_a_cached_run_that_saves_nothing_needs_no_rival() -> None:
    assert missing_rivals(measured([20.4], {}, share=1.0)) == []


def test_the_same_share_of_the_blocks_is_always_measured() -> None:
    assert missing_rivals(measured([12.0], {17: [12.1]})) == [14]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(12.0, True), (10.95, True), (13.1, True), (10.5, False), (13.5, False)]
)
def test_a_sentence_says_the_same_time_only_where_the_medians_do(seconds: float, shown: bool) -> None:
    _, words = told(measured([12.0] * 3, {14: [seconds] * 3}))
    assert ("In the same time, 14 steps" in words) is shown


def test_what_takes_less_time_and_is_closer_is_told_as_such() -> None:
    found = [*measured([12.0] * 3, {14: [11.8] * 3}), result("steps", 7, [5.0] * 3, psnr=50.0)]
    headline, words = told(found)
    assert headline == "1.67 times as fast, but fewer steps are closer"
    assert "In less time, 7 steps without a cache (5.00 s) are closer: 50.0 dB. Fewer steps are the better" in words


def test_much_faster_runs_that_are_farther_away_prove_nothing() -> None:
    headline, words = told(measured([12.0] * 3, {7: [5.22] * 3}))
    assert headline == "1.67 times as fast"
    assert words.endswith("No run with fewer steps took the same time.")


def test_one_timed_run_is_said_to_be_one() -> None:
    assert (
        told(measured([12.0], {16: [12.1]}))[0]
        == "1.67 times as fast in one timed run, closer than fewer steps at that speed"
    )
    assert told(measured([24.0], {}))[0] == "Slower than without a cache in one timed run"
    assert "one timed run" not in told(measured([12.0] * 2, {16: [12.1]}))[0]


def test_seconds_that_do_not_follow_the_steps_are_doubted() -> None:
    found = measured([12.0], {20: [12.9], 16: [17.1], 13: [12.8]})
    (line,) = timing_doubts(found)
    assert "16 steps took 17.1\u00a0s and 20 steps 12.9\u00a0s" in line and "repeat on an idle machine" in line
    assert line in remarks(found, 1, 1)


def test_so_are_those_of_another_solver() -> None:
    found = [*measured([12.0], {14: [10.2]}), result("solver", 5, [13.7]), result("solver", 6, [11.1])]
    (line,) = timing_doubts(found)
    assert "5 steps took 13.7\u00a0s and 6 steps 11.1\u00a0s" in line


def test_a_run_faster_than_its_blocks_allow_is_doubted() -> None:
    (line,) = timing_doubts(measured([20 / 2.53], {14: [10.2]}, share=0.48))
    assert "H2-Cache, tolerance 0.002 ran 2.53 times as fast, more than 48\u00a0% of the blocks allow (2.08)" in line


def test_sound_timings_are_not_doubted() -> None:
    assert list(timing_doubts(measured([10.8], {14: [10.4], 15: [10.9], 16: [10.8]}))) == []


@pytest.mark.parametrize(
    ("budget", "steps", "solver", "counts"),
    [
        (0.5, 28, "own", [14]),  # exactly
        (0.39, 28, "own", [10, 11]),  # 11 of 28 is 39.3 %
        (0.33, 28, "unipc", [9]),  # 10 of 28 is 36 %, too much
        (0.5, 28, "heun", [7]),  # 13 calls; 8 steps make 15, 54 %
        (0.39, 28, "heun", [5, 6]),  # 9 and 11 calls
        (0.05, 10, "own", []),
        (0.09, 10, "own", [1]),
        (0.99, 4, "own", [3]),
    ],
)
def test_fewer_steps_are_those_next_to_a_budget(budget: float, steps: int, solver: str, counts: list[int]) -> None:
    assert steps_within(budget, steps, solver, over=0.02) == counts
