"""A tolerance: whole steps are skipped while the error they cause is estimated to stay below it.

This is the step-size control of ODE solvers, with an error estimate that costs nothing. Each computed velocity is
compared with its forecast, which gives the rate at which the error of forecasts grows: relative error per distance in
sigma. It is the rate of the forecast that is in use, whether that extrapolated or held the last velocity. Until the
next computed step the error is assumed to grow at the same rate; the errors of the skipped steps, each times its
interval, add up to the displacement of the picture. With a plan too, only steps that the plan skips can be skipped:
what is known about the schedule beforehand and what the picture shows decide together. Everything here is host numbers.

Source: error estimates of predictor-corrector pairs, as in Hairer, Norsett, Wanner, "Solving Ordinary Differential
Equations I", III.7. Choosing the steps of a cache by them is h2gen's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from h2gen.cache.outcome import Decision, Outcome, Outlook
from h2gen.cache.policies.plan import check_length, letter_at
from h2gen.cache.policies.thresholds import GUARDED, Thresholds

if TYPE_CHECKING:
    from h2gen.cache.config import CacheConfig
    from h2gen.cache.passes import Pass
    from h2gen.cache.trajectory import Run

_SKIPPED = Outcome.SKIPPED, Outcome.SKIPPED
UNCORRECTED = 2.0
"""Factor on the estimated error if the solver does not let the next computed step correct it."""


@dataclass(frozen=True)
class ErrorEstimate:
    """The estimated error of one picture since its last computed step.

    Args:
        sigma: of that step.
        rate: relative error of a forecast, per distance in sigma from that step.
        displacement: how far the steps skipped since then have displaced the picture, in sigma times the velocity's
            size.
    """

    sigma: float
    rate: float
    displacement: float = 0.0

    def after(self, sigma: float, interval: float) -> ErrorEstimate:
        """The estimate once the step at ``sigma``, which moves the picture by ``interval``, is skipped.

        A solver that calls the model twice at one sigma has moved the picture in between, by about that much.
        """
        distance = self.sigma - sigma or interval
        return replace(self, displacement=self.displacement + abs(interval * distance) * self.rate)


@dataclass(frozen=True)
class Tolerance:
    """The ``tolerance`` of a configuration, together with its ``plan`` if it has one.

    What it does not skip is left to the thresholds, or computed in full.
    """

    config: CacheConfig
    skips: ClassVar[bool] = True

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.config)

    def tau(self, stage: str) -> float:
        return self.thresholds.tau(stage)

    def reuses(self, stage: str) -> bool:
        return self.thresholds.reuses(stage)

    @property
    def undecided(self) -> tuple[Decision, Decision]:
        return self.thresholds.undecided

    def before_step(self, run: Run, current: Pass) -> Outlook:
        """Which pictures skip the coming step, which compute it in full, and which the thresholds decide."""
        errors: list[float | None] = [None for _ in current.since_full]
        if self.config.plan:
            check_length(self.config.plan, run, current)
        if run.schedule is None:
            run.skipped = set()
        else:
            if current.index == 0:
                self._estimate(run, current)
            errors = self._errors(run, current)
            if current.index == 0:
                pictures = enumerate(errors[: current.pictures])
                run.skipped = {row for row, error in pictures if self._may_skip(run, current, row, error)}
        return Outlook([self._outcomes(run, current, row) for row in range(len(errors))], errors)

    def _outcomes(self, run: Run, current: Pass, row: int) -> tuple[Decision, Decision]:
        velocities = current.memory.velocities[row]
        if row % current.pictures in run.skipped and velocities:
            return _SKIPPED
        # The step after skipped ones corrects them. Its error was estimated for a full step, so it must be one.
        corrects = velocities.pending_correction and self.thresholds.reuses("detail")
        if corrects or self.thresholds.guards(run, current.step, current.since_full[row]):
            return GUARDED
        return self.thresholds.undecided

    def _estimate(self, run: Run, current: Pass) -> None:
        """Update each picture's estimate after a step: by the error that it measured, or by that of skipping it."""
        schedule, step = run.schedule, current.step - 1
        assert schedule is not None
        for row in run.skipped & run.estimates.keys():
            run.estimates[row] = run.estimates[row].after(schedule.sigmas[step], schedule.moves[step])
        once = UNCORRECTED if schedule.intervals is None else 1.0
        for row, rate in run.take_error_rates(current.pictures).items():
            run.estimates[row] = ErrorEstimate(schedule.sigmas[step], once * rate)

    def _errors(self, run: Run, current: Pass) -> list[float | None]:
        """How far each picture would be off if the coming step were skipped; None if it cannot be."""
        schedule, step = run.schedule, current.step
        rows = [row % current.pictures for row in range(len(current.since_full))]
        assert schedule is not None
        last = step + 1 >= len(schedule)  # it is computed: it corrects the skipped ones before it
        if last or not self._plan_lets(current):
            return [None for _ in rows]
        sigma, move = schedule.sigmas[step], schedule.moves[step]
        return [run.estimates[row].after(sigma, move).displacement if row in run.estimates else None for row in rows]

    def _plan_lets(self, current: Pass) -> bool:
        """Whether the plan, if there is one, skips the coming step."""
        return not self.config.plan or letter_at(self.config.plan, current) == "S"

    def _may_skip(self, run: Run, current: Pass, row: int, error: float | None) -> bool:
        """Whether every pass of a picture can skip the coming step; the first pass decides for all of them.

        If all passes of true guidance skip the same steps, their errors are alike, and guidance, which multiplies
        the difference between the passes, does not multiply their errors.
        """
        plan, passes = self.config.plan, run.passes_of(current.pictures)
        if not self._plan_lets(current):
            return False
        if error is None and not plan:  # a plan may skip before anything has been measured
            return False
        return (
            (error is None or error <= self.config.tolerance)
            and all(all(each.memory.velocities[row :: current.pictures]) for each in passes)
            and not any(
                self.thresholds.guards(run, current.step, since)
                for each in passes
                for since in each.since_full[row :: current.pictures]
            )
        )
