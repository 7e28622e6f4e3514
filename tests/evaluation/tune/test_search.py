"""The whole search: what a budget means for each solver, and which errors must not end it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from h2gen.errors import BadPicture, SettingError
from h2gen.evaluation.results import Case
from h2gen.evaluation.tune.candidates import fewer_steps, plan_method
from h2gen.evaluation.tune.forecast_errors import SolverPasses
from h2gen.evaluation.tune.measurement_log import MeasurementLog
from h2gen.evaluation.tune.options import MOST_PASSES, TuneObserver, TuneOptions, check_steps
from h2gen.evaluation.tune.planner import Planner, thinned
from h2gen.evaluation.tune.recording import RecordedRun
from h2gen.evaluation.tune.search import TuneSearch
from h2gen.models.choices import evaluations
from h2gen.settings.values import Settings
from tests import small


def recorded(passes: int) -> RecordedRun:
    tensors = np.random.default_rng(1).normal(size=(passes, 40)).cumsum(0)
    gram = tensors @ tensors.T
    sigmas = np.linspace(1, 1 / passes, passes)
    when = SolverPasses(tuple(sigmas), (1 / passes,) * passes)
    return RecordedRun(when, gram, gram, gram, (1.0,) * passes)


@pytest.mark.parametrize("solver", ["own", "unipc", "heun"])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_budget_is_of_the_uncached_run_however_many_passes_a_solver_takes(solver: str, share: float) -> None:
    steps = 10
    passes = evaluations(steps, solver)
    found = list(Planner([recorded(passes)], (4, 8), corrected=solver == "own").plans(share, steps))
    plans = [each.plan for each in found]
    assert plans and len(set(plans)) == len(plans)
    for plan in plans:
        assert len(plan) == passes
        run = 12 * plan.count("F") + 5 * plan.count("D") + 2 * plan.count("R")
        assert run <= share * 12 * steps
        assert run > share * 12 * steps - 12  # and used up, as far as possible
        assert plan_method(plan, solver).steps == steps


def test_each_plan_has_the_least_of_its_own_error() -> None:
    found = list(Planner([recorded(12)], (4, 8), corrected=True).plans(0.4, 12))
    skipping = [each for each in found if {*each.plan} == {*"FS"}]
    assert len(skipping) > 1
    for one in skipping:
        assert all(one.error(one.plan) <= one.error(other.plan) + 1e-12 for other in skipping)
    assert skipping[0].error("F" + "D" * 11) == float("inf")


def test_a_plan_is_thinned_where_its_error_grows_least() -> None:
    planned = next(Planner([recorded(12)], (4, 8), corrected=True).plans(0.4, 12))
    assert planned.plan.count("F") == 4
    once = thinned(planned, 1)
    others = [planned.plan[:place] + "S" + planned.plan[place + 1 :] for place in range(1, 12)]
    assert once.count("F") == 3 and once in others
    assert planned.error(once) == min(planned.error(other) for other in others if other.count("F") == 3)
    assert thinned(planned, 3) == ""  # a plan of its first step alone would be no plan


def test_too_few_steps_and_too_many_are_told() -> None:
    check_steps("mine", MOST_PASSES)
    with pytest.raises(SettingError, match="below 8"):
        check_steps("mine", 7)
    with pytest.raises(SettingError, match="up to 200: give fewer --steps"):
        check_steps("mine", MOST_PASSES + 1)


def test_a_candidate_whose_picture_is_nan_is_as_bad_as_can_be_and_does_not_end_the_search(tmp_path: Path) -> None:
    session: Any = SimpleNamespace(pipe=small.flux_pipeline(), checkpoint=SimpleNamespace(name="mine"))
    with MeasurementLog(tmp_path / "n.jsonl", {}) as log:
        search = TuneSearch(
            session, Settings("-", 0, 64, 64, 10), [Case("a cat", 1)], TuneOptions(), log, TuneObserver()
        )

        def broken(*_: Any) -> Any:
            raise BadPicture("it came out as NaN.")

        search._maker = SimpleNamespace(make=broken)  # type: ignore[assignment]
        found = search.measured(fewer_steps(5, "own", 10))
    assert (found.error, found.share) == (2.0, 1.0)


def test_heun_takes_too_many_passes_before_the_others_do(tmp_path: Path) -> None:
    session: Any = SimpleNamespace(pipe=small.flux_pipeline(), checkpoint=SimpleNamespace(name="mine"))
    with MeasurementLog(tmp_path / "n.jsonl", {}) as log:
        search = TuneSearch(
            session, Settings("-", 0, 64, 64, 150), [Case("a cat", 1)], TuneOptions(), log, TuneObserver()
        )
        assert list(search._planners("heun")) == [None]  # its fewer steps are still tried
    assert "Heun has no plans" in search.notices[0]
