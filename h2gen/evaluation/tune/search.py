"""The search: record, solve, polish, and look at what else the same budget would buy.

It goes the same way each time it is run on the same model and prompts, and asks a ``MeasurementLog`` for everything
that costs pictures: a search that was killed goes on where it was.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from h2gen.cache import CacheConfig
from h2gen.cache.stages import stages_of
from h2gen.errors import BadPicture, H2GenError, SettingError
from h2gen.evaluation import methods
from h2gen.evaluation.fidelity import ssim
from h2gen.evaluation.make_image import ImageMaker
from h2gen.evaluation.methods import Method
from h2gen.evaluation.results import Case
from h2gen.evaluation.tune.adaptive import ADAPTIVE, MOST, fitted
from h2gen.evaluation.tune.edge_costs import Matrix, displacements
from h2gen.evaluation.tune.measurement_log import MeasurementLog
from h2gen.evaluation.tune.polish import polish
from h2gen.evaluation.tune.record import Recorded, recording
from h2gen.evaluation.tune.shortest_path import Shortest, shortest, total_error
from h2gen.generation.session import Session
from h2gen.models.choices import SOLVERS, evaluations
from h2gen.settings.profiles import FEWEST_STEPS
from h2gen.settings.values import OFF, Settings

BUDGETS = (0.66, 0.5, 0.4, 0.33, 0.25, 0.2, 0.16, 0.125, 0.1)
"""Shares of the blocks of the uncached run for which something is looked for."""

MOST_PASSES = 200
"""Passes of a picture: the search's tables grow with their third power, and take some 300 MB here."""


@dataclass(frozen=True)
class TuneOptions:
    """How much is tried.

    Args:
        budgets: shares of the blocks, above 0 and below 1.
        tries: plans measured while one is polished; 0 does not polish.
        keep: candidates of each budget that are worth checking on other prompts.
    """

    budgets: tuple[float, ...] = BUDGETS
    tries: int = 24
    keep: int = 3

    @property
    def pictures(self) -> int:
        """Of each prompt, at most: uncached and recorded ones, and those of each budget's fewer steps, plans and
        tolerances."""
        each = 2 * len(SOLVERS) + self.tries + MOST
        return 1 + len(SOLVERS) + len(self.budgets) * each


class TuneObserver(Protocol):
    """Whoever wants to know how a search goes on."""

    def began(self, what: str) -> None:
        """Another part of the work: its name, for people."""

    def made(self) -> None:
        """One more picture."""

    def tried(self, budget: float, method: Method, share: float, error: float) -> None:
        """A candidate for a budget was measured: its share of the blocks, and its mean 1 - SSIM."""


@dataclass(frozen=True)
class Candidate:
    """What was measured of a method on the search's prompts: the share of the blocks, and the mean of 1 - SSIM."""

    method: Method
    share: float
    error: float


class Tuning:
    """A search on a loaded model.

    Args:
        session: the model.
        settings: of every picture; prompt and seed are the cases' own.
        cases: what is searched on.
        wishes: how much is tried.
        notebook: remembers what was measured.
        watcher: is told how it goes on.

    Raises:
        SettingError: there are too few steps for a cache, or no cases.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        cases: Sequence[Case],
        wishes: TuneOptions,
        notebook: MeasurementLog,
        watcher: TuneObserver,
    ) -> None:
        check_steps(session.checkpoint.name, settings.steps)
        if not cases:
            raise SettingError("There are no prompts to search on; give one at least.")
        self._session, self._settings, self._cases = session, replace(settings, cache=OFF, solver="own"), tuple(cases)
        self._wishes, self._notebook, self._watcher = wishes, notebook, watcher
        self._maker = ImageMaker(session, self._cases, self._settings)
        self._steps = settings.steps
        self._blocks = [len(stage.blocks) for stage in stages_of(session.pipe.transformer)]
        self._references: list[Image.Image] = []
        self.notices: list[str] = []

    def candidates(self) -> list[Method]:
        """What is worth checking on other prompts, the best of each budget."""
        self._watcher.began(f"Making {len(self._cases)} uncached pictures")
        self._references = [self._make(methods.reference(self._steps), case) for case in range(len(self._cases))]
        planners = {solver: planner for solver in SOLVERS for planner in self._planners(solver)}
        found: dict[str, Method] = {}
        for budget in self._wishes.budgets:
            self._watcher.began(f"Searching {budget:.0%} of the blocks")
            tried: list[Candidate] = []
            for method in self._of(budget, planners):
                candidate = self.measured(method)
                self._watcher.tried(budget, method, candidate.share, candidate.error)
                tried.append(candidate)
            tried.sort(key=lambda candidate: candidate.error)
            adaptive = [one for one in tried if one.method.cache.enabled and not one.method.cache.plan]
            for candidate in (*tried[: self._wishes.keep], *adaptive[:1]):
                found[candidate.method.name] = candidate.method
        return list(found.values())

    def measured(self, method: Method) -> Candidate:
        """A method on all cases."""
        scores = [self._score(method, case) for case in range(len(self._cases))]
        return Candidate(
            method,
            statistics.fmean(score["share"] for score in scores),
            statistics.fmean(1 - score["ssim"] for score in scores),
        )

    # What there is for a budget

    def _of(self, budget: float, planners: Mapping[str, Planner | None]) -> Iterator[Method]:
        for solver in planners:
            most = int(budget * self._steps + 1e-9)
            steps = (most + 1) // 2 if solver == "heun" else most
            if steps >= 1:
                yield steps_of(steps, solver, self._steps)
        exact: list[tuple[float, str, str, Planner]] = []
        for solver, planner in planners.items():
            plan = None if planner is None else planner.plan(budget, self._steps)
            if planner is not None and plan is not None and plan.count("F") not in (1, len(plan)):
                yield plan_of(plan, solver)
                exact.append((self._error(plan, solver), plan, solver, planner))
        if exact and self._wishes.tries:
            self._watcher.began(f"Polishing {budget:.0%} of the blocks")
            _, plan, solver, planner = min(exact, key=lambda found: found[0])
            better = polish(plan, lambda plan: self._error(plan, solver), planner.error, self._wishes.tries)
            if better.plan != plan:
                yield plan_of(better.plan, solver)
        self._watcher.began(f"Searching a tolerance for {budget:.0%} of the blocks")
        found = fitted(ADAPTIVE, budget, lambda cache: self.measured(adapting(cache, self._steps)).share)
        if found is not None:
            yield adapting(found.cache, self._steps)

    def _error(self, plan: str, solver: str) -> float:
        return self.measured(plan_of(plan, solver)).error

    def _planners(self, solver: str) -> Iterator[Planner | None]:
        """What finds plans for a solver, from what its uncached runs show: None where it takes too many passes for
        plans to be looked for, and nothing at all where it does not work with the model."""
        if evaluations(self._steps, solver) > MOST_PASSES:
            self.notices.append(f"Plans for {SOLVERS[solver]} are left out: they are found up to {MOST_PASSES} passes.")
            yield None
            return
        by = f"{SOLVERS[solver]}{' solver' if solver == 'own' else ''}"
        self._watcher.began(f"Recording {len(self._cases)} pictures with {by}")
        try:
            records = [self._recorded(solver, case) for case in range(len(self._cases))]
        except H2GenError as error:
            if solver == "own":
                raise
            self.notices.append(f"{SOLVERS[solver]} is left out: {error}")
            return
        yield Planner(records, self._blocks, corrected=solver == "own")

    def _recorded(self, solver: str, case: int) -> Recorded:
        def make() -> Any:
            passes, scale = self._maker.passes, self._settings.cfg
            method = methods.tuned("recorded", self._steps, OFF, solver)
            with recording(self._session.pipe.transformer, passes=passes, scale=scale) as record:
                image, schedule = self._with_schedule(method, case)
            del image
            return record.finish(schedule).to_json()

        return Recorded.from_json(self._notebook.get(self._key(f"record {solver}", case), make))

    def _with_schedule(self, method: Method, case: int) -> tuple[Image.Image, Any]:
        """A picture, and the scheduler that made it: the pipeline has its own back afterwards."""
        seen: list[Any] = []
        handle = self._session.pipe.transformer.register_forward_pre_hook(
            lambda *_: seen.append(self._session.pipe.scheduler) if not seen else None
        )
        try:
            return self._make(method, case), seen[0]
        finally:
            handle.remove()

    # Measuring

    def _score(self, method: Method, case: int) -> dict[str, float]:
        def make() -> dict[str, float]:
            try:
                made = self._maker.make(method, case)
            except BadPicture:  # NaN is as far off as can be
                return {"ssim": -1.0, "share": 1.0}
            self._watcher.made()
            return {"ssim": ssim(made.image, self._references[case]), "share": made.share}

        score: dict[str, float] = self._notebook.get(self._key(f"score {method.name}", case), make)
        return score

    def _make(self, method: Method, case: int) -> Image.Image:
        image = self._maker.make(method, case).image
        self._watcher.made()
        return image

    def _key(self, what: str, case: int) -> str:
        where = self._cases[case]
        return json.dumps([what, where.prompt, where.seed])


class Planner:
    """The shortest plans of a model with a solver.

    Args:
        records: of several pictures, all with the same schedule; errors are means over them.
        blocks: of the structure and of the detail stage.
        corrected: whether the solver lets the cache make good for skipped steps.
    """

    def __init__(self, records: Sequence[Recorded], blocks: Sequence[int], *, corrected: bool) -> None:
        first, second = blocks
        self._full = first + second
        schedule = records[0].schedule
        self._steps = len(schedule)

        def mean(of: Callable[[Recorded], Matrix]) -> Matrix:
            errors: Matrix = np.mean([of(record) for record in records], axis=0)
            return errors

        self._kinds = {
            "S": (mean(lambda r: displacements(r.velocity, schedule, farthest=math.inf, corrected=corrected)), 0),
            "R": (mean(lambda r: displacements(r.reused, schedule, gains=r.gains)), 2),
            "D": (mean(lambda r: displacements(r.detail, schedule, gains=r.gains)), first + 1),
        }
        if self._steps * self._full > 4000:  # the tables grow with the budget: with S alone it is counted in steps
            del self._kinds["D"], self._kinds["R"]
        self._solved: Shortest = shortest(self._kinds, self._full)

    def plan(self, share: float, reference: int) -> str | None:
        """The plan of least error for a share of the blocks of an uncached run of so many passes; None below the
        floor."""
        budget = share * reference * self._full
        return None if budget < self._solved.floor else self._solved.within(budget).plan

    def error(self, plan: str) -> float:
        """The error that the shortest path minimises, of any plan of its letters."""
        return total_error(plan, self._kinds)


def check_steps(model: str, steps: int) -> None:
    """Whether there is anything for a cache to leave out, and no more than a search can hold.

    Raises:
        SettingError: there are too few steps, or too many.
    """
    if steps > MOST_PASSES:
        raise SettingError(f"{model!r} takes {steps} steps here; tuning takes up to {MOST_PASSES}: give fewer --steps.")
    if steps < FEWEST_STEPS:
        raise SettingError(
            f"{model!r} takes {steps} steps here, and a cache cannot help below {FEWEST_STEPS}: there is nothing that "
            "one step could take from another. Fewer --steps are all that is faster."
        )


def plan_of(plan: str, solver: str) -> Method:
    """A plan as a method."""
    steps, of = ((len(plan) + 1) // 2, "passes") if solver == "heun" else (len(plan), "steps")
    kept = {"S": "skipped", "R": "reused", "D": "with the detail reused", "C": "with the structure reused"}
    others = [f"{plan.count(letter)} {words}" for letter, words in kept.items() if letter in plan]
    by = "" if solver == "own" else f", {SOLVERS[solver]}"
    label = f"{plan.count('F')} of {len(plan)} {of}, {', '.join(others)}{by}"
    return methods.tuned(label, steps, CacheConfig(0, 0, forecast=1, plan=plan), solver)


def adapting(cache: CacheConfig, steps: int) -> Method:
    """Settings that adapt to each picture as a method."""
    return methods.tuned(cache.words, steps, cache, "own")


def steps_of(steps: int, solver: str, reference: int) -> Method:
    """Fewer steps, as a method."""
    by = "" if solver == "own" else f", {SOLVERS[solver]}"
    return methods.tuned(f"{steps} steps{by}", steps, OFF, solver, evaluations(steps, solver) / reference)
