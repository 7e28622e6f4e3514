"""The frontier: every method's best for each budget, and how ours compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from h2gen.cache import CacheConfig
from h2gen.evaluation import methods
from h2gen.evaluation.frontier_rows import against_best, best_rows, first_shown, own_methods, story, verdict
from h2gen.evaluation.results import Comparison, MethodResult, Score
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey
from h2gen.settings.values import OFF
from tests.evaluation.comparisons import comparison

PLAN = methods.tuned("a plan", 10, CacheConfig(0, 0, plan="FFSSFSSSSS", forecast=1), "own")
ADAPTS = methods.tuned("thresholds", 10, CacheConfig(0.2, 0.2, forecast=1), "own")


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
        result("taylor 4 3", "peer", 0.31, 0.985),
        result("taylor 6 3", "peer", 0.21, 0.96),
        result("fb 0.2", "peer", 0.3, 0.9),
        result("h2 0.5 0.7", "h2", 0.2, 0.8, tau1=0.5),
        result(PLAN.name, "h2", 0.2, 0.995, plan=PLAN.cache.plan),
        result(ADAPTS.name, "h2", 0.21, 0.986, tau1=0.2),
        *more,
    ]
    return replace(comparison(), methods=tuple(found))


def test_each_budget_shows_the_best_of_every_sort_that_it_pays_for() -> None:
    found = best_rows(measured(), [PLAN, ADAPTS], [0.33, 0.2])
    names = {budget: [row.result.name for row in found if row.budget == budget] for budget in (0.33, 0.2)}
    assert set(names[0.2]) == {"steps 10", "unipc 10", "taylor 6 3", "h2 0.5 0.7", PLAN.name, ADAPTS.name}
    assert {"steps 16", "taylor 4 3", "fb 0.2"} <= set(names[0.33])
    assert names[0.2][0] == PLAN.name  # the closest first
    errors = [row.error for row in found if row.budget == 0.2]
    assert errors == sorted(errors)
    assert {row.result.name: row.whose for row in found}["h2 0.5 0.7"] == "paper"


def test_what_is_closer_for_less_is_what_a_budget_buys() -> None:
    found = best_rows(measured(result("steps 15", "steps", 0.3, 0.99)), [PLAN, ADAPTS], [0.33])
    assert [row.result.name for row in found if row.whose == "steps"] == ["steps 15"]


def test_the_verdict_is_of_what_adapts_against_the_best_other() -> None:
    found = against_best(best_rows(measured(), [PLAN, ADAPTS], [0.2]), 0.2)
    assert found is not None
    ratio, mine, rival = found
    assert (mine.result.name, rival.result.name) == (ADAPTS.name, "unipc 10")
    assert ratio == pytest.approx(0.014 / 0.02)
    found = against_best(best_rows(measured(), [PLAN], [0.2]), 0.2)
    assert found is not None and found[1].result.name == PLAN.name
    assert against_best(best_rows(measured(), [], [0.2]), 0.2) is None


def test_the_verdict_is_a_sentence_in_plain_words() -> None:
    found = best_rows(measured(), [PLAN, ADAPTS], [0.2])
    assert verdict(found, 0.2) == f"{ADAPTS.name} is better than the best alternative here, unipc 10 (0.70x its error)."
    closer = best_rows(measured(result("steps 9", "steps", 0.2, 0.993)), [PLAN, ADAPTS], [0.2])
    assert verdict(closer, 0.2).endswith("is worse than the best alternative here, steps 9 (2.00x its error).")
    same = best_rows(measured(result("steps 9", "steps", 0.2, 1.0)), [PLAN, ADAPTS], [0.2])
    assert verdict(same, 0.2).endswith("steps 9, whose pictures are identical to the uncached ones.")
    assert verdict(best_rows(measured(), [], [0.2]), 0.2) == ""


def test_the_report_concludes_as_the_terminal_does_and_shows_every_budget() -> None:
    budgets = [0.33, 0.2]
    found = best_rows(measured(), [PLAN, ADAPTS], budgets)
    told = story(found, budgets)
    assert told.command == "h2gen frontier"
    assert told.headline == "H2-Cache is closer than every alternative at 2 of 2 budgets"
    assert told.sentences == [
        f"At {b} of the blocks, {verdict(found, share)}" for b, share in (("33\u00a0%", 0.33), ("20\u00a0%", 0.2))
    ]
    assert [ranking.title for ranking in told.tables] == ["At 33\u00a0% of the blocks", "At 20\u00a0% of the blocks"]
    assert [row.label for row in told.tables[1].rows if row.ours] == [PLAN.name, ADAPTS.name]
    assert story(best_rows(measured(), [], budgets), budgets).headline == "Methods ranked at equal compute"


def test_the_report_shows_our_own_method_first_and_not_the_papers() -> None:
    results = measured().methods
    assert first_shown(results, [PLAN, ADAPTS]) == ADAPTS.name
    assert first_shown(results, [PLAN]) == PLAN.name
    assert first_shown(results, []) is None


def test_a_row_is_plain_data() -> None:
    row = best_rows(measured(), [PLAN, ADAPTS], [0.2])[0].to_json()
    assert (row["whose"], row["adapts"], row["budget"]) == ("ours", False, 0.2)
    assert row["error"] == pytest.approx(0.005) and row["ssim_worst"] == pytest.approx(0.895)


def test_ours_are_a_profiles_best_of_both_sorts_for_each_budget() -> None:
    def choice(label: str, share: float, ssim: float, cache: CacheConfig) -> Choice:
        return Choice(label, 10, "own", cache, Figures(share, 1.0, 1 / share, ssim, ssim, 30.0, 30.0))

    situation = ProfileKey("m", "0" * 64, 10, 64, 64, "plain")
    choices = (
        choice("steps", 0.2, 0.999, OFF),
        choice("plan", 0.2, 0.99, PLAN.cache),
        choice("poorer", 0.18, 0.9, replace(PLAN.cache, plan="FSSSFSSSSS")),
        choice("adapts", 0.45, 0.98, ADAPTS.cache),
    )
    found = own_methods(Profile(Path("x"), situation, choices, {}), [0.5, 0.2])
    assert [method.label for method in found] == ["H2-Cache, plan", "H2-Cache, adapts"]
