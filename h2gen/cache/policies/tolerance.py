"""A tolerance: whole steps are skipped while the error they cause is estimated to stay below it.

This is the step-size control of ODE solvers, with an error estimate that costs nothing. At each computed step the
velocity is compared with what the line through the two before it predicted. The difference gives the velocity's
curvature, half its second derivative. Skipped steps are on such a line, and the integral of its deviation over them is
how far they displace the picture. Everything here is host numbers.

Source: error estimates of predictor-corrector pairs, as in Hairer, Norsett, Wanner, "Solving Ordinary Differential
Equations I", III.7. Choosing the steps of a cache by them is h2gen's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from h2gen.cache.outcome import Decision, Outcome, Outlook
from h2gen.cache.policies.thresholds import GUARDED, Thresholds

if TYPE_CHECKING:
    from h2gen.cache.config import CacheConfig
    from h2gen.cache.trajectory import Pass, Run

_SKIPPED = Outcome.SKIPPED, Outcome.SKIPPED


@dataclass(frozen=True)
class CurvatureEstimate:
    """What a picture's last computed step says about the steps ahead.

    Args:
        sigma: of that step.
        curvature: half the second derivative of the velocity in sigma there, relative to the velocity's size.
        before: None if skipped steps are corrected later, so that they are on the line between the computed steps
            on both sides; otherwise the distance in sigma between the two points whose line is extended over them.
    """

    sigma: float
    curvature: float
    before: float | None = None

    def displacement(self, sigma: float) -> float:
        """How far the picture is off, in sigma times the velocity's size, if every step until ``sigma`` is skipped.

        The integral over these steps of ``curvature * s * (distance - s)``, or of ``curvature * s * (before + s)``.
        """
        distance = self.sigma - sigma
        if self.before is None:
            return self.curvature * distance**3 / 6
        return self.curvature * (distance**3 / 3 + distance**2 * self.before / 2)


@dataclass(frozen=True)
class Tolerance:
    """The ``tolerance`` of a configuration. What it does not skip is left to the thresholds, or computed in full."""

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
        if run.schedule is None:
            run.skipped = set()
        else:
            if current.index == 0:
                self._estimate(run, current)
            errors = self._errors(run, current)
            if current.index == 0:
                run.skipped = {row for row, error in enumerate(errors) if self._may_skip(run, current, row, error)}
        return Outlook([self._outcomes(run, current, row) for row in range(len(errors))], errors)

    def _outcomes(self, run: Run, current: Pass, row: int) -> tuple[Decision, Decision]:
        velocities = current.memory.velocities[row]
        if row in run.skipped and velocities:
            return _SKIPPED
        # The step after skipped ones corrects them. Its error was estimated for a full step, so it must be one.
        corrects = velocities.pending_correction and self.thresholds.reuses("detail")
        if corrects or self.thresholds.guards(run, current.step, current.since_full[row]):
            return GUARDED
        return self.thresholds.undecided

    def _estimate(self, run: Run, current: Pass) -> None:
        """Take over what the last computed step of each picture measured, if that is new."""
        assert run.schedule is not None
        for row, curvature in run.take_curvatures(len(current.since_full)).items():
            before = current.memory.velocities[row].gap if run.schedule.intervals is None else None
            run.estimates[row] = CurvatureEstimate(run.schedule.sigmas[current.step - 1], curvature, before)

    def _errors(self, run: Run, current: Pass) -> list[float | None]:
        """How far each picture would be off if the coming step were skipped."""
        assert run.schedule is not None
        sigmas, rows = run.schedule.sigmas, range(len(current.since_full))
        if current.step + 1 >= len(sigmas):  # the last step is computed: it corrects the skipped ones before it
            return [None for _ in rows]
        ahead = sigmas[current.step + 1]
        return [run.estimates[row].displacement(ahead) if row in run.estimates else None for row in rows]

    def _may_skip(self, run: Run, current: Pass, row: int, error: float | None) -> bool:
        """Whether every pass of a picture can skip the coming step; the first pass decides for all of them.

        If all passes of true guidance skip the same steps, their errors are alike, and guidance, which multiplies
        the difference between the passes, does not multiply their errors.
        """
        passes = run.passes_of(len(current.since_full))
        return (
            error is not None
            and error <= self.config.tolerance
            and all(len(each.memory.velocities[row]) > 1 for each in passes)
            and not any(self.thresholds.guards(run, current.step, each.since_full[row]) for each in passes)
        )
