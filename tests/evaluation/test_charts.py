"""Charts are well-formed, and show each step and each method where it belongs."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from h2gen.cache import CacheConfig, Outcome, StageRecord, StepRecord
from h2gen.cache.outcome_words import outcome_of
from h2gen.evaluation.charts import decisions_chart, pareto_chart
from h2gen.evaluation.charts.pareto import short_label
from h2gen.evaluation.results import best_of, score
from tests.evaluation.comparisons import CLIP_IQA, LPIPS, PSNR, comparison, trace

SVG = "{http://www.w3.org/2000/svg}"
CACHE = CacheConfig(0.15, 0.22)


def step(
    index: int, structure: float | None, detail: float | None, outcome: str = "full", context: str = "cond"
) -> StepRecord:
    first, second, blocks = {
        "full": (Outcome.COMPUTED, Outcome.COMPUTED, 12),
        "guarded": (Outcome.GUARDED, Outcome.GUARDED, 12),
        "aged": (Outcome.COMPUTED, Outcome.GUARDED, 12),
        "detail reused": (Outcome.COMPUTED, Outcome.REUSED, 5),
        "all reused": (Outcome.REUSED, Outcome.FORCED, 2),
        "skipped": (Outcome.SKIPPED, Outcome.SKIPPED, 0),
    }[outcome]
    stages = StageRecord(structure, first), StageRecord(detail, second)
    return StepRecord(0, index, context, 1000.0 - index, 1.0 - index / 1000, *stages, blocks, 12, 0.01)


STEPS = [
    step(0, None, None),
    step(1, 0.30, 0.40),
    step(2, 0.20, 0.10, "detail reused"),
    step(3, 0.05, None, "all reused"),
    step(4, 0.10, None, "all reused"),
    step(5, 0.25, 0.35),
    step(6, None, None, "guarded"),
]


def drawn(svg: str, kind: str) -> list[ElementTree.Element]:
    """The elements of these classes, in order, without those of the legends."""
    wanted = set(kind.split())
    root = ElementTree.fromstring(svg)
    legends = {id(child) for group in root.iter(f"{SVG}g") if group.get("transform") for child in group.iter()}
    return [each for each in root.iter() if wanted <= set(each.get("class", "").split()) and id(each) not in legends]


def path(svg: str, kind: str) -> str:
    (element,) = drawn(svg, kind)
    return element.get("d", "")


def test_a_plans_chart_says_so_and_names_no_threshold() -> None:
    steps = [step(0, None, None), step(1, None, None, "all reused")]
    svg = decisions_chart(steps, CacheConfig(0.15, 0.22, plan="FR"))
    assert "decided by a plan; nothing was measured" in svg
    assert "threshold" not in svg and "never reused" not in svg and not drawn(svg, "tau")


def test_a_tolerances_chart_shows_the_error_that_was_held_against_it() -> None:
    errors = [None, None, 0.001, 0.0015, 0.0031, None]
    outcomes = ["full", "full", "skipped", "skipped", "full", "full"]
    steps = [
        replace(step(index, None, None, outcome), error=error)
        for index, (error, outcome) in enumerate(zip(errors, outcomes, strict=True))
    ]
    svg = decisions_chart(steps, CacheConfig(0, 0, tolerance=0.002))
    assert decisions_chart(steps, CacheConfig(0, 0, plan="FFSSSF", tolerance=0.002)) == svg
    assert "error if skipped, tolerance 0.002" in svg and "error of the picture if the step is skipped" in svg
    of_video = decisions_chart(steps, CacheConfig(0, 0, tolerance=0.002), noun="video")
    assert "error of the video if the step is skipped" in of_video
    assert path(svg, "structure dots").count("M") == 3 and len(drawn(svg, "tau")) == 1
    assert "step 5: full, 12 of 12 blocks, error if skipped 0.0031" in svg


def test_a_point_is_named_by_what_decides() -> None:
    like = next(method for method in comparison().methods if method.kind == "h2")
    caches = [CacheConfig(0.1, 0.2), CacheConfig(0, 0, tolerance=0.00204), CacheConfig(0, 0, plan="FSSF/FSSF")]
    caches.append(CacheConfig(0, 0, plan="FSSF", tolerance=0.05))
    names = [short_label(replace(like, detail={**asdict(cache), "steps": 4})) for cache in caches]
    assert names == ["0.1 / 0.2", "0.002", "2 of 4", "0.05"]


def test_every_measured_change_is_a_point_and_a_line_stops_where_none_was_measured() -> None:
    svg = decisions_chart(STEPS, CACHE)
    assert path(svg, "structure dots").count("M") == 5
    assert path(svg, "detail dots").count("M") == 3
    assert path(svg, "structure line").count("M") == 1
    assert path(svg, "structure line").count("L") == 4
    assert path(svg, "detail line").count("M") == 2  # from step 1 to 2, and step 5 by itself: 3 and 4 were forced
    assert path(svg, "detail line").count("L") == 1


def test_a_larger_change_is_drawn_higher() -> None:
    heights = [
        float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h0", path(decisions_chart(STEPS, CACHE), "structure dots"))
    ]
    changes = [record.structure.change for record in STEPS if record.structure.change is not None]
    assert sorted(range(5), key=lambda i: -heights[i]) == sorted(range(5), key=lambda i: changes[i])


def test_the_strip_has_a_cell_a_step_as_high_as_the_blocks_that_ran() -> None:
    cells = [each for each in drawn(decisions_chart(STEPS, CACHE), "") if each.get("data-step")]
    assert [each.get("class") for each in cells] == ["full", "full", "part", "reused", "reused", "full", "guarded"]
    heights = [float(each.get("height", "")) for each in cells]
    assert [round(12 * height / heights[0]) for height in heights] == [12, 12, 5, 2, 2, 12, 12]


def test_few_blocks_of_many_can_still_be_seen() -> None:
    records = [replace(record, blocks_total=57, blocks_run=2) for record in STEPS]
    cells = [each for each in drawn(decisions_chart(records, CACHE), "") if each.get("data-step")]
    assert len(cells) >= len(records)
    assert all(float(each.get("height", "")) >= 3 for each in cells)


def test_each_stage_has_its_threshold_and_one_that_is_off_has_none() -> None:
    assert len(drawn(decisions_chart(STEPS, CACHE), "tau")) == 2
    assert len(drawn(decisions_chart(STEPS, CacheConfig(0.15, 0)), "tau")) == 1
    assert "threshold 0.22" in decisions_chart(STEPS, CACHE)
    assert "structure, never reused" in decisions_chart(STEPS, CacheConfig(0, 0.22))


def test_both_passes_of_true_guidance_have_a_plot_each() -> None:
    records = trace(CACHE, steps=10, contexts=("cond", "uncond"))
    svg = decisions_chart(records, CACHE)
    assert "Pass with the prompt" in svg
    assert "Pass without the prompt" in svg
    assert len(drawn(svg, "structure dots")) == 2
    assert sum(each.get("data-step") is not None for each in ElementTree.fromstring(svg).iter()) == 20


def test_a_change_far_above_the_thresholds_does_not_flatten_the_others() -> None:
    svg = decisions_chart([*STEPS, step(7, 50.0, 0.3)], CACHE)
    assert path(svg, "structure over")
    assert "above the scale" in svg
    assert path(svg, "structure dots").count("M") == 5
    assert "above the scale" not in decisions_chart(STEPS, CACHE)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_change_that_is_no_number_is_a_gap(odd: float) -> None:
    svg = decisions_chart([*STEPS, step(7, odd, odd), step(8, 0.1, None, "all reused")], CACHE)
    assert path(svg, "structure dots").count("M") == 6
    assert "nan" not in svg


@pytest.mark.parametrize("count", [1, 2, 4, 28, 100, 400])
@pytest.mark.parametrize("width", [350.0, 700.0])
def test_numbers_of_steps_keep_apart_and_within_the_chart(count: int, width: float) -> None:
    svg = decisions_chart(trace(CACHE, steps=count), CACHE, width=width)
    labels = [each for each in drawn(svg, "mid") if each.text != "step"]
    places = [float(each.get("x", "")) for each in labels]
    assert labels[0].text == "1"
    assert labels[-1].text == str(count)
    assert all(b - a >= 22 for a, b in pairwise(places))
    assert places[-1] <= width - 8


def test_without_steps_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no steps"):
        decisions_chart([], CACHE)


def test_thresholds_that_every_change_is_below_are_no_scale() -> None:
    svg = decisions_chart([step(0, None, None), step(1, 0.2, None, "all reused")], CacheConfig(1e30, 1e30))
    ElementTree.fromstring(svg)
    assert "0.2" in svg


def test_a_detail_that_was_too_old_does_not_make_its_step_a_guarded_one() -> None:
    assert outcome_of(step(1, 0.3, None, "aged")) == "full"


@pytest.mark.parametrize(("index", "word"), [(0, "full"), (2, "detail reused"), (3, "all reused"), (6, "guarded")])
def test_a_step_is_told_in_words_when_it_is_pointed_at(index: int, word: str) -> None:
    assert outcome_of(STEPS[index]) == word
    told = drawn(decisions_chart(STEPS, CACHE), "hit")[index][0].text or ""
    assert told.startswith(f"step {index + 1}: {word}, ")


def test_only_a_chart_that_stands_alone_carries_its_colours() -> None:
    assert "prefers-color-scheme" in decisions_chart(STEPS, CACHE)
    assert "<style>" not in decisions_chart(STEPS, CACHE, standalone=False)
    assert "prefers-color-scheme" in pareto_chart(comparison(), PSNR)
    assert "<style>" not in pareto_chart(comparison(), PSNR, standalone=False)


@pytest.mark.parametrize("count", [2, 4, 12, 30])
@pytest.mark.parametrize("width", [350.0, 700.0])
def test_every_method_is_a_point_that_the_keyboard_reaches(count: int, width: float) -> None:
    found = comparison(count, 1)
    points = drawn_points(pareto_chart(found, PSNR, width=width))
    assert {point.get("data-method") for point in points} == {method.name for method in found.methods}
    assert all(point.get("tabindex") == "0" and point.get("aria-label") for point in points)


def drawn_points(svg: str) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(svg).iter() if each.get("data-method") is not None]


def place(point: ElementTree.Element) -> tuple[float, float]:
    x, y = re.findall(r"[\d.]+", point.get("transform", ""))
    return float(x), float(y)


def test_faster_is_to_the_right_and_closer_is_above() -> None:
    found = comparison(12, 1)
    for metric, better in ((PSNR, 1), (LPIPS, -1)):
        places = {point.get("data-method"): place(point) for point in drawn_points(pareto_chart(found, metric))}
        methods = found.methods
        by_speed = sorted(methods, key=lambda method: method.speedup)
        rights = [places[method.name][0] for method in by_speed]
        assert rights == sorted(rights)
        by_value = sorted(methods, key=lambda method: better * method.scores[metric.name].mean)
        heights = [places[method.name][1] for method in by_value]
        assert heights == sorted(heights, reverse=True)


def test_an_identical_picture_stands_above_the_scale_with_a_label_of_its_own() -> None:
    svg = pareto_chart(comparison(6, 1), PSNR)
    heights = {point.get("data-method"): place(point)[1] for point in drawn_points(svg)}
    assert all(heights["uncached"] < y for name, y in heights.items() if name != "uncached")
    assert ">identical</text>" in svg
    assert ">identical</text>" not in pareto_chart(comparison(6, 1), LPIPS)
    assert "inf" not in svg.replace("infer", "")


def test_where_all_pictures_are_identical_there_is_still_a_chart() -> None:
    found = comparison(2, 1)
    reference = found.methods[0]
    same = replace(reference, name="h2 0 0", kind="h2", speedup=0.98, pareto=False)
    points = drawn_points(pareto_chart(replace(found, methods=(reference, same)), PSNR))
    assert len({place(point)[1] for point in points}) == 1


def test_some_identical_pictures_do_not_make_a_method_identical() -> None:
    found = comparison(4, 3)
    method = found.methods[1]
    samples = (replace(method.samples[0], scores={**method.samples[0].scores, "psnr": math.inf}), *method.samples[1:])
    mean = score([sample.scores["psnr"] for sample in samples], higher_is_better=True)
    odd = replace(method, samples=samples, scores={**method.scores, "psnr": mean})
    svg = pareto_chart(replace(found, methods=(found.methods[0], odd, *found.methods[2:])), PSNR)
    heights = {point.get("data-method"): place(point)[1] for point in drawn_points(svg)}
    assert heights["uncached"] < heights[odd.name]


def test_kinds_differ_in_shape_and_not_in_colour_alone() -> None:
    shapes: dict[str, set[str]] = {}
    for point in drawn_points(pareto_chart(comparison(12, 1), PSNR)):
        kind = point.get("class", "").split()[1]
        shapes.setdefault(kind, set()).add(point.findall(f"{SVG}path")[0].get("d", ""))
    assert set(shapes) == {"reference", "h2", "steps", "solver", "peer"}
    assert len(set.union(*shapes.values())) == len(shapes)


def test_the_line_joins_the_methods_that_no_other_beats() -> None:
    found = comparison(12, 1)
    best = {method.name for method in found.methods if method.pareto}
    assert best == best_of(found.methods, PSNR)
    svg = pareto_chart(found, PSNR)
    assert len(drawn(svg, "best")) == len(best) - 1
    joined = {(x, y) for line in drawn(svg, "best") for x, y in re.findall(r"([\d.]+) ([\d.]+)", line.get("d", ""))}
    places = {point.get("data-method"): place(point) for point in drawn_points(svg)}
    assert {(float(x), float(y)) for x, y in joined} == {places[name] for name in best}


def test_the_chosen_method_is_marked_and_lies_on_top() -> None:
    points = drawn_points(pareto_chart(comparison(12, 1), PSNR))
    assert [point.get("data-method") for point in points if "chosen" in point.get("class", "")] == ["h2 0.15 0.15"]
    assert points[-1].get("data-method") == "h2 0.15 0.15"


def test_against_the_truth_the_uncached_picture_is_a_point_like_any_other() -> None:
    svg = pareto_chart(comparison(6, 2, truth=True), PSNR, against="truth")
    points = drawn_points(svg)
    assert "truth" not in {point.get("data-method") for point in points}
    assert len(points) == 6
    assert "the picture of 400 steps" in svg
    assert ">identical</text>" not in svg


def test_a_metric_of_the_picture_alone_does_not_claim_closeness() -> None:
    svg = pareto_chart(comparison(6, 1), CLIP_IQA)
    assert "closer to" not in svg


@pytest.mark.parametrize("count", [4, 8, 15, 30])
@pytest.mark.parametrize("width", [350.0, 700.0])
def test_names_of_points_do_not_cover_each_other(count: int, width: float) -> None:
    svg = pareto_chart(comparison(count, 2), PSNR, width=width)
    boxes = []
    for point in drawn_points(svg):
        x, y = place(point)
        for name in point.findall(f"{SVG}text"):
            wide = 0.55 * 11.5 * len(name.text or "")
            left = x + float(name.get("x", ""))
            left -= wide if "end" in name.get("class", "") else wide / 2 if "mid" in name.get("class", "") else 0
            boxes.append((left, y + float(name.get("y", "")), left + wide))
    assert len(boxes) >= min(count, 4)
    for number, (left, base, right) in enumerate(boxes):
        for other_left, other_base, other_right in boxes[:number]:
            assert right <= other_left or other_right <= left or abs(base - other_base) >= 10


def test_names_from_strangers_stay_text() -> None:
    found = comparison(4, 1)
    hostile = '</text><script>alert(1)</script>"\x07&'
    odd = replace(found.methods[2], name=hostile, label=hostile)
    svg = pareto_chart(replace(found, methods=(*found.methods[:2], odd, *found.methods[3:])), PSNR)
    root = ElementTree.fromstring(svg)
    assert not list(root.iter(f"{SVG}script"))
    assert hostile.replace("\x07", "\ufffd") in {point.get("data-method") for point in drawn_points(svg)}
