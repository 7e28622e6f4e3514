"""The frontier: every method's best for each budget, and how ours compare."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from h2gen.cache import CacheConfig
from h2gen.evaluation import methods
from h2gen.evaluation.frontier_estimate import estimate
from h2gen.evaluation.frontier_rows import (
    best_rows,
    cells,
    first_shown,
    lacking,
    own_methods,
    story,
    titles,
    verdicts,
)
from h2gen.evaluation.peers import PEERS, choose_peers
from h2gen.evaluation.results import Comparison, MethodResult, Score
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey
from h2gen.settings.values import OFF
from tests.evaluation.comparisons import comparison

PLAN = methods.tuned("a plan", 10, CacheConfig(0, 0, plan="FFSSFSSSSS", forecast=1), "own")
ADAPTS = methods.tuned("a tolerance", 10, CacheConfig(0, 0, tolerance=0.01, forecast=1), "own")
STAGES = methods.tuned("thresholds", 10, CacheConfig(0.2, 0.2, forecast=1), "own")
OWN = [PLAN, ADAPTS, STAGES]


def result(name: str, kind: str, share: float, ssim: float, **detail: object) -> MethodResult:
    like = comparison().methods[1]
    scores = {"ssim": Score(ssim, ssim - 0.1, 0), "psnr": Score(30.0, 20.0, 0)}
    return replace(like, name=name, label=name, kind=kind, share=share, scores=scores, detail=detail)


def measured(*more: MethodResult) -> Comparison:
    found = [
        result("uncached", "reference", 1.0, 1.0),
        result("steps 10", "steps", 0.2, 0.95),
        result("steps 16", "steps", 0.32, 0.97),
        result("unipc 10", "solver", 0.2, 0.98),
        result("heun 5", "solver", 0.2, 0.94),
        result("taylor 4 3", "peer", 0.31, 0.985),
        result("taylor 6 3", "peer", 0.21, 0.96),
        result("fb 0.2", "peer", 0.3, 0.9),
        result("h2 0.5 0.7", "h2", 0.2, 0.8, tau1=0.5),
        result(PLAN.name, "h2", 0.2, 0.995, plan=PLAN.cache.plan),
        result(ADAPTS.name, "h2", 0.21, 0.986, tolerance=0.01),
        result(STAGES.name, "h2", 0.2, 0.975, tau1=0.2),
        *more,
    ]
    return replace(comparison(), methods=tuple(found))


def test_each_budget_shows_the_best_of_every_sort_that_it_pays_for() -> None:
    found = best_rows(measured(), OWN, [0.33, 0.2])
    names = {budget: [row.result.name for row in found if row.budget == budget] for budget in (0.33, 0.2)}
    rivals = {"steps 10", "unipc 10", "heun 5", "taylor 6 3"}
    assert set(names[0.2]) == {*rivals, "h2 0.5 0.7", PLAN.name, ADAPTS.name, STAGES.name}
    assert {"steps 16", "taylor 4 3", "fb 0.2"} <= set(names[0.33])
    assert names[0.2][0] == PLAN.name  # the closest first
    errors = [row.error for row in found if row.budget == 0.2]
    assert errors == sorted(errors)
    assert {row.result.name: row.whose for row in found}["h2 0.5 0.7"] == "paper"


def test_what_is_closer_for_less_is_what_a_budget_buys() -> None:
    found = best_rows(measured(result("steps 15", "steps", 0.3, 0.99)), [PLAN, ADAPTS], [0.33])
    assert [row.result.name for row in found if row.whose == "steps"] == ["steps 15"]


def test_each_policy_is_judged_on_its_own_in_the_mean_and_at_the_worst_prompt() -> None:
    worse = result("fb 0.4", "peer", 0.2, 0.97)
    worse = replace(worse, scores={**worse.scores, "ssim": Score(0.97, 0.96, 0)})
    adaptive, plan, stages = verdicts(best_rows(measured(worse), OWN, [0.2]), 0.2)
    assert [each.row.result.name for each in (adaptive, plan, stages)] == [ADAPTS.name, PLAN.name, STAGES.name]
    assert (adaptive.rival.result.name, adaptive.worst_rival.result.name) == ("unipc 10", "fb 0.4")
    assert [each.ratio for each in (adaptive, plan, stages)] == pytest.approx(
        [0.014 / 0.02, 0.005 / 0.02, 0.025 / 0.02]
    )
    assert adaptive.worst_ratio == pytest.approx(0.114 / 0.04)
    assert [each.row.policy for each in verdicts(best_rows(measured(), [PLAN], [0.2]), 0.2)] == ["plan"]
    assert verdicts(best_rows(measured(), [], [0.2]), 0.2) == []
    only_own = replace(comparison(), methods=tuple(r for r in measured().methods if r.kind in ("reference", "h2")))
    assert verdicts(best_rows(only_own, OWN, [0.2]), 0.2) == []
    plain = adaptive.to_json()
    assert (plain["budget"], plain["policy"], plain["rival"]) == (0.2, "tolerance", "unipc 10")
    assert plain["ratio"] == pytest.approx(0.7) and plain["worst_ratio"] == pytest.approx(2.85)


def test_the_verdict_is_a_sentence_in_plain_words() -> None:
    adaptive = verdicts(best_rows(measured(), [PLAN, ADAPTS], [0.2]), 0.2)[0]
    assert str(adaptive) == (
        f"The adaptive policy ({ADAPTS.name}) has 0.70x the error of the best alternative, unipc 10; at the worst "
        "prompt, 0.95x."
    )
    same = replace(result("steps 9", "steps", 0.2, 1.0))
    same = replace(same, scores={**same.scores, "ssim": Score(1.0, 1.0, 0)})
    (plan,) = verdicts(best_rows(measured(same), [PLAN], [0.2]), 0.2)
    assert str(plan) == (
        f"The plan ({PLAN.name}) differs from the uncached run; the best alternative, steps 9, is identical to it."
    )
    assert plan.to_json()["ratio"] is None


def test_the_report_concludes_as_the_terminal_does_and_shows_every_budget() -> None:
    budgets = [0.33, 0.2]
    found = best_rows(measured(), [PLAN, ADAPTS], budgets)
    told = story(found, budgets)
    assert told.command == "h2gen frontier"
    assert told.headline == (
        "Closer than every alternative: the adaptive policy at 2 of 2 budgets, the plan at 2 of 2 budgets"
    )
    assert told.sentences == [
        f"At {b} of the blocks: {each}"
        for b, share in (("33\u00a0%", 0.33), ("20\u00a0%", 0.2))
        for each in verdicts(found, share)
    ]
    assert [ranking.title for ranking in told.tables] == ["At 33\u00a0% of the blocks", "At 20\u00a0% of the blocks"]
    assert [row.label for row in told.tables[1].rows if row.ours] == [PLAN.name, ADAPTS.name]
    assert story(best_rows(measured(), [], budgets), budgets).headline == "Methods ranked at equal compute"
    cheap = story(best_rows(measured(result("steps 4", "steps", 0.1, 0.9)), [PLAN], [0.2, 0.1]), [0.2, 0.1])
    assert cheap.headline.endswith("the plan at 1 of 2 budgets")  # there is no plan at 10 % of the blocks, but a rival


def test_lpips_has_columns_where_it_was_measured() -> None:
    (row, *_) = best_rows(measured(), OWN, [0.2])
    assert len(titles([row])) == len(cells(row)) == 5 and row.to_json()["lpips_mean"] is None
    scores = {**row.result.scores, "lpips": Score(0.0123, 0.2, 0)}
    row = replace(row, result=replace(row.result, scores=scores))
    assert titles([row])[5:] == ["LPIPS", "worst"] and cells(row)[5:] == ["0.0123", "0.200"]
    assert row.to_json()["lpips_worst"] == 0.2


def test_the_estimate_counts_every_picture() -> None:
    # uncached, six own, 14 and 7 steps of two solvers, Heun's 7 and 4; 12 or 13 tries on 8 prompts for each search
    every = estimate({"own", "paper", "steps", "peers"}, (0.5, 0.25), choose_peers("fb,mag"), 10, 28)
    assert every.methods == 1 + 6 + (2 + 2 + 2) + 4 + 2
    assert every.searching == 2 * 8 * (12 + 13 + 13) + 8  # MagCache is calibrated
    assert every.pictures == 10 * every.methods + every.searching
    fitted = estimate({"peers"}, (0.5, 0.25), choose_peers("meancache"), 10, 28)
    tried = 1 + sum(len(values) - 1 for values in PEERS["meancache"].choices.values())
    assert fitted.searching == 8 + 4 + 2 * 4 * tried
    only = estimate({"steps"}, (0.5, 0.25), [], 10, 28)
    assert (only.pictures, only.searching) == (70, 0)
    assert only.uncached_pictures == round(10 * (1 + 2 * (14 + 7) / 28 + (13 + 7) / 28))
    assert "At most 70 pictures (7 methods, 10 prompts); they take about as long as " in str(only)
    assert "616 of them to find the settings of other caches" in str(every)
    known = only.expecting(ProfileKey("tiny", "", 28, 128, 128, "true"))
    assert known.seconds is not None and known.seconds == known.uncached_pictures * (known.seconds_uncached or 0)
    assert re.search(
        r"\d uncached ones: .+ if an uncached picture takes .+, as in the profile 'tiny-28-128.+'\.$", str(known)
    )
    assert only.expecting(ProfileKey("dev", "", 28, 1024, 1024, "plain")) == only and only.seconds is None
    assert only.timed(2.0).startswith("An uncached picture takes 2.00\u00a0s: about ")


def test_the_report_shows_our_own_method_first_and_not_the_papers() -> None:
    results = measured().methods
    assert first_shown(results, [PLAN, ADAPTS]) == ADAPTS.name
    assert first_shown(results, [STAGES, PLAN]) == PLAN.name
    assert first_shown(results, []) is None


def test_a_row_is_plain_data() -> None:
    row = best_rows(measured(), [PLAN, ADAPTS], [0.2])[0].to_json()
    assert (row["whose"], row["policy"], row["budget"]) == ("ours", "plan", 0.2)
    assert row["error"] == pytest.approx(0.005) and row["ssim_worst"] == pytest.approx(0.895)


def test_ours_are_a_profiles_best_of_every_policy_for_each_budget() -> None:
    def choice(label: str, share: float, ssim: float, cache: CacheConfig) -> Choice:
        return Choice(label, 10, "own", cache, Figures(share, 1.0, 1 / share, ssim, ssim, 30.0, 30.0))

    situation = ProfileKey("m", "0" * 64, 10, 64, 64, "plain")
    choices = (
        choice("steps", 0.2, 0.999, OFF),
        choice("plan", 0.2, 0.99, PLAN.cache),
        choice("poorer", 0.18, 0.9, replace(PLAN.cache, plan="FSSSFSSSSS")),
        choice("adapts", 0.45, 0.98, ADAPTS.cache),
        choice("stages", 0.5, 0.97, STAGES.cache),
    )
    found = own_methods(Profile(Path("x"), situation, choices, {}), [0.5, 0.2])
    assert [method.label for method in found] == ["H2-Cache, adapts", "H2-Cache, plan", "H2-Cache, stages"]


def test_what_a_profile_lacks_within_a_budget_is_said() -> None:
    plan = Choice("plan", 10, "own", PLAN.cache, Figures(0.3, 1.0, 3.0, 0.9, 0.9, 30.0, 30.0))
    profile = Profile(Path("x.toml"), ProfileKey("m", "0" * 64, 10, 64, 64, "plain"), (plan,), {})
    tolerance, planned, stages = lacking(profile, [0.5, 0.33, 0.2])
    assert planned == (
        "The plan has no row at 20\u00a0% of the blocks: the profile 'x.toml' has none that runs so few."
    )
    assert "The adaptive policy has no row at 50\u00a0%, 33\u00a0%, 20\u00a0% of the blocks" in tolerance
    assert stages.startswith("The two-stage cache ")
    assert len(lacking(profile, [0.5])) == 2
