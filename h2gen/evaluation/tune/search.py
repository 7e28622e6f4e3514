"""The search for good settings: for each budget, record uncached runs, plan, polish and measure the candidates.

The search is deterministic and asks a ``MeasurementLog`` for everything that needs an image, so an interrupted search
continues where it stopped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from h2gen.cache.config import CacheConfig
from h2gen.cache.stages import stages_of
from h2gen.errors import BadPicture, H2GenError, SettingError
from h2gen.evaluation import methods
from h2gen.evaluation.fit_budget import ADAPTIVE, fit_tolerance, guard
from h2gen.evaluation.make_image import ImageMaker
from h2gen.evaluation.methods import Method
from h2gen.evaluation.results import Case
from h2gen.evaluation.tune.candidates import Candidate, adaptive_method, fewer_steps, plan_method
from h2gen.evaluation.tune.measurement_log import MeasurementLog
from h2gen.evaluation.tune.options import MOST_PASSES, TuneObserver, TuneOptions, check_steps
from h2gen.evaluation.tune.planner import Planned, Planner, thinned
from h2gen.evaluation.tune.polish import polish
from h2gen.evaluation.tune.recording import RecordedRun, recording
from h2gen.evaluation.tune.stage_changes import StageChanges, recording_changes
from h2gen.evaluation.tune.threshold_search import ThresholdSearch
from h2gen.evaluation.video_metrics import mean_ssim
from h2gen.evaluation.videos import Shown
from h2gen.families import family_of
from h2gen.generation.session import Session
from h2gen.models.choices import SOLVERS, TRIED_SOLVERS, evaluations
from h2gen.settings.profiles import sort_of
from h2gen.settings.table import SORTS
from h2gen.settings.values import OFF, Settings
from h2gen.wording import plural

LEFT_TO_TOLERANCE = 0.04
"""The share of the steps that a plan leaves to a tolerance."""


class TuneSearch:
    """A search on a loaded model.

    Args:
        session: the model.
        settings: of every image; the prompt and seed come from each case.
        cases: prompts and seeds to search on.
        options: how much is tried.
        log: keeps what was measured.
        observer: receives progress events.

    Raises:
        SettingError: there are too few or too many steps, or no cases.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        cases: Sequence[Case],
        options: TuneOptions,
        log: MeasurementLog,
        observer: TuneObserver,
    ) -> None:
        check_steps(session.checkpoint.name, settings.steps)
        if not cases:
            raise SettingError("There are no prompts to search on; give at least one.")
        self._session, self._settings, self._cases = session, replace(settings, cache=OFF, solver="own"), tuple(cases)
        self._options, self._log, self._observer = options, log, observer
        self.notices: list[str] = []
        self._maker = ImageMaker(session, self._cases, self._settings, self.notices.append)
        self._steps = settings.steps
        self._blocks = [len(stage.blocks) for stage in stages_of(session.pipe.transformer)]
        self._references: list[Shown] = []
        self._changes: list[StageChanges] = []
        self._thresholds = ThresholdSearch(
            lambda cache: statistics.fmean(changes.share(cache) for changes in self._changes),
            lambda cache: self.measured(adaptive_method(cache, self._steps)),
            options.threshold_tries,
        )

    def candidates(self) -> list[Method]:
        """The best methods for each budget, which should be measured on other prompts."""
        self._observer.began(f"Making {plural(len(self._cases), f'uncached {self._settings.noun}')}")
        self._references = [self._reference(case) for case in range(len(self._cases))]
        planners = {solver: planner for solver in TRIED_SOLVERS for planner in self._planners(solver)}
        found: dict[str, Method] = {}
        for budget in self._options.budgets:
            self._observer.began(f"Searching {budget:.0%} of the blocks")
            tried: list[Candidate] = []
            for method in self._for_budget(budget, planners):
                candidate = self.measured(method)
                self._observer.tried(budget, method, candidate.share, candidate.error)
                tried.append(candidate)
            tried.sort(key=lambda candidate: candidate.error)
            best = {sort: [each for each in tried if sort_of(each.method.cache) == sort][:1] for sort in SORTS}
            for candidate in (*tried[: self._options.keep], *chain(*best.values())):
                found[candidate.method.name] = candidate.method
        return list(found.values())

    def measured(self, method: Method) -> Candidate:
        """Measure a method on all cases."""
        scores = [self._score(method, case) for case in range(len(self._cases))]
        return Candidate(
            method,
            statistics.fmean(score["share"] for score in scores),
            statistics.fmean(1 - score["ssim"] for score in scores),
        )

    # The methods to try for a budget

    def _for_budget(self, budget: float, planners: Mapping[str, Planner | None]) -> Iterator[Method]:
        for solver in planners:
            most = int(budget * self._steps + 1e-9)
            steps = (most + 1) // 2 if solver == "heun" else most
            if steps >= 1:
                yield fewer_steps(steps, solver, self._steps)
        plans: list[_Tried] = []
        for solver, planner in planners.items():
            for planned in () if planner is None else planner.plans(budget, self._steps):
                if planned.plan.count("F") not in (1, len(planned.plan)):
                    yield plan_method(planned.plan, solver)
                    plans.append(_Tried(self._error(planned.plan, solver), solver, planned))
        if self._options.tries:
            self._observer.began(f"Polishing {budget:.0%} of the blocks")
            for tried in _closest(plans):
                better = self._polished(tried)
                yield plan_method(better.planned.plan, better.solver)
                plans.append(better)
        yield from self._adaptive(budget, [tried for tried in _closest(plans) if {*tried.planned.plan} == {*"FS"}])
        if self._options.threshold_tries:
            self._observer.began(f"Searching thresholds for {budget:.0%} of the blocks")
            found = self._thresholds.within(budget)
            if found is not None:
                yield found.method

    def _polished(self, tried: _Tried) -> _Tried:
        plan, solver = tried.planned.plan, tried.solver
        better = polish(plan, lambda other: self._error(other, solver), tried.planned.error, self._options.tries)
        return _Tried(better.error, solver, replace(tried.planned, plan=better.plan))

    def _adaptive(self, budget: float, plans: Sequence[_Tried]) -> Iterator[Method]:
        """A tolerance alone; one together with the best plan less a few steps, which it adds where they help; and one
        that guards each of the plans, which have full and skipped steps only."""
        self._observer.began(f"Searching a tolerance for {budget:.0%} of the blocks")

        def share_of(cache: CacheConfig, solver: str = "own") -> float:
            return self.measured(adaptive_method(cache, self._steps, solver)).share

        few = max(1, round(LEFT_TO_TOLERANCE * self._steps))
        for plan in dict.fromkeys(("", *(thinned(each.planned, few) for each in plans if each.solver == "own"))):
            found = fit_tolerance(replace(ADAPTIVE, plan=plan), budget, share_of)
            if found is not None:
                yield adaptive_method(found.cache, self._steps)
        for each in plans:
            guarded = guard(each.planned.plan, partial(share_of, solver=each.solver))
            yield adaptive_method(guarded, self._steps, each.solver)

    def _error(self, plan: str, solver: str) -> float:
        return self.measured(plan_method(plan, solver)).error

    def _planners(self, solver: str) -> Iterator[Planner | None]:
        """The planner of a solver, from its recorded runs: yields None if it takes too many passes to plan for, and
        nothing if it does not work with the model."""
        if evaluations(self._steps, solver) > MOST_PASSES:
            self.notices.append(
                f"{SOLVERS[solver]} has no plans: it takes more than {MOST_PASSES} passes, which is the most that the "
                "search supports."
            )
            yield None
            return
        by = f"{SOLVERS[solver]}{' solver' if solver == 'own' else ''}"
        self._observer.began(f"Recording {plural(len(self._cases), self._settings.noun)} with {by}")
        try:
            runs = [self._recorded(solver, case) for case in range(len(self._cases))]
        except H2GenError as error:
            if solver == "own":
                raise
            self.notices.append(f"{SOLVERS[solver]} is left out: {error}")
            return
        yield Planner(runs, self._blocks, corrected=solver == "own")

    def _recorded(self, solver: str, case: int) -> RecordedRun:
        def make() -> Any:
            transformer, passes = self._session.pipe.transformer, self._maker.passes
            scale = family_of(transformer).guidance_weight(self._settings.cfg)
            method = methods.tuned("recorded", self._steps, OFF, solver)
            with recording(transformer, passes=passes, scale=scale) as record:
                scheduler = self._scheduler_of(method, case)
            return record.finish(scheduler).to_json()

        return RecordedRun.from_json(self._log.get(self._key(f"record {solver}", case), make))

    def _scheduler_of(self, method: Method, case: int) -> Any:
        """Make an image; returns the scheduler that made it, which the pipeline gives up afterwards."""
        seen: list[Any] = []
        handle = self._session.pipe.transformer.register_forward_pre_hook(
            lambda *_: seen.append(self._session.pipe.scheduler) if not seen else None
        )
        try:
            self._make(method, case)
            return seen[0]
        finally:
            handle.remove()

    # Measuring

    def _score(self, method: Method, case: int) -> dict[str, float]:
        def make() -> dict[str, float]:
            try:
                made = self._maker.make(method, case)
            except BadPicture:  # NaN: as bad as it gets
                return {"ssim": -1.0, "share": 1.0}
            self._observer.made()
            return {"ssim": mean_ssim(made.image, self._references[case]), "share": made.share}

        score: dict[str, float] = self._log.get(self._key(f"score {method.name}", case), make)
        return score

    def _reference(self, case: int) -> Shown:
        """The uncached image of a case; how its stages change is recorded."""
        transformer, passes = self._session.pipe.transformer, self._maker.passes
        with recording_changes(transformer, passes=passes, steps=self._steps) as record:
            image = self._make(methods.reference(self._steps), case)
        self._changes.append(record.finish())
        return image

    def _make(self, method: Method, case: int) -> Shown:
        image = self._maker.make(method, case).image
        self._observer.made()
        return image

    def _key(self, what: str, case: int) -> str:
        where = self._cases[case]
        return json.dumps([what, where.prompt, where.seed])


class _Tried(NamedTuple):
    """A plan that was measured with a solver, and its mean 1 - SSIM."""

    error: float
    solver: str
    planned: Planned


def _closest(plans: Sequence[_Tried]) -> list[_Tried]:
    """The best of all plans, and the best with full and skipped steps only of the model's own solver: one or two."""
    own = [tried for tried in plans if tried.solver == "own" and {*tried.planned.plan} == {*"FS"}]
    best = [min(some, key=lambda tried: tried.error) for some in (plans, own) if some]
    return list(dict.fromkeys(best))
