"""Plans: what to do at each step, given beforehand as one letter per step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from h2gen.cache.outcome import Decision, Outcome, Outlook
from h2gen.errors import CacheError, SettingError

if TYPE_CHECKING:
    from h2gen.cache.config import CacheConfig
    from h2gen.cache.passes import Pass
    from h2gen.cache.trajectory import Run

OUTCOMES = {
    "F": (Outcome.COMPUTED, Outcome.COMPUTED),
    "D": (Outcome.COMPUTED, Outcome.REUSED),
    "C": (Outcome.REUSED, Outcome.COMPUTED),
    "R": (Outcome.REUSED, Outcome.FORCED),
    "S": (Outcome.SKIPPED, Outcome.SKIPPED),
}
"""What each letter makes of the structure stage and of the detail stage."""

_MEANINGS = "F full, D detail reused, C structure reused, R both reused, S skipped"
_LONGEST = 50_000
"""Letters."""


def check_plan(text: str, *, skips_only: bool = False) -> str:
    """A plan without spaces and commas, in capital letters.

    With true guidance each pass may have its own part, separated by ``/``: ``FRRF/FRFR``. A single part applies to all
    passes.

    Args:
        skips_only: whether there is a tolerance too; then all passes skip the same steps, and no stage is reused.

    Raises:
        SettingError: a letter is unknown, the first is not F, the parts differ in length, or the plan cannot be
            combined with a tolerance.
    """
    plan = "".join(text.replace(",", " ").split()).upper()
    if len(plan) > _LONGEST:
        raise SettingError(f"plan has {len(plan)} letters; no run has that many steps.")
    parts = plan.split("/") if plan else []
    for part in parts:
        for step, letter in enumerate(part, 1):
            if letter not in OUTCOMES:
                raise SettingError(f"plan has {letter!r} at step {step}; its letters are {_MEANINGS}.")
        if not part.startswith("F"):
            raise SettingError(
                f"plan begins with {part[:1]!r}; its first step must be F, since there is nothing to reuse yet."
            )
        if len(part) != len(parts[0]):
            raise SettingError(
                f"plan has {len(parts[0])} steps for one pass and {len(part)} for another; give the same number."
            )
    if skips_only and not {*plan} <= {"F", "S"}:
        others = ", ".join(sorted({*plan} - {"F", "S", "/"}))
        raise SettingError(
            f"plan has {others or 'several parts'}; with a tolerance, a plan has only F (full) and S (skipped), in one "
            "part for all passes."
        )
    return plan


def plan_of(plan: str, index: int) -> str:
    """The letters for a pass of true guidance, counted from 0; the last part also applies to later passes."""
    parts = plan.split("/")
    return parts[min(index, len(parts) - 1)]


def steps_in(plan: str) -> int:
    """The number of steps that a plan is for."""
    return len(plan_of(plan, 0))


def parts_in(plan: str) -> int:
    """The number of passes with a separate part; 1 if one part is for all of them."""
    return plan.count("/") + 1


def letter_of(structure: Outcome, detail: Outcome) -> str:
    """The letter for a step with these outcomes."""
    if structure is Outcome.SKIPPED:
        return "S"
    return {(True, True): "F", (True, False): "D", (False, True): "C", (False, False): "R"}[structure.ran, detail.ran]


def joined(parts: Iterable[str]) -> str:
    """One plan out of one per pass: a single part if they do not differ."""
    distinct = list(parts)
    return distinct[0] if len(set(distinct)) == 1 else "/".join(distinct)


def end_of_plan(plan: str, steps: int) -> str:
    """The plan of a run that begins in the middle of the schedule: its last letters. The first step is full."""
    return joined("F" + part[len(part) - steps + 1 :] for part in plan.split("/"))


@dataclass(frozen=True)
class Plan:
    """The ``plan`` of a configuration without a tolerance. Thresholds and guards are ignored, nothing is measured."""

    config: CacheConfig

    @property
    def skips(self) -> bool:
        """Whether whole steps may be skipped."""
        return "S" in self.config.plan

    def tau(self, _stage: str) -> float:
        """A stage's threshold: 0, it is never checked."""
        return 0.0

    def reuses(self, stage: str) -> bool:
        """Whether the stage's residual will ever be reused."""
        return not {"R", "C" if stage == "structure" else "D"}.isdisjoint(self.config.plan)

    @property
    def undecided(self) -> tuple[Decision, Decision]:
        """The letter if the pictures of a batch differ, which never happens under a plan: a full step."""
        return OUTCOMES["F"]

    def before_step(self, run: Run, current: Pass) -> Outlook:
        """What the plan says about the coming step, the same for every picture.

        Raises:
            CacheError: the plan is for another number of steps, or has more parts than a step has passes.
        """
        warning = ""
        check_length(self.config.plan, run, current)
        passes = sum(each.together for each in run.passes)
        if current.step == 1 and passes < parts_in(self.config.plan):
            raise CacheError(
                f"The plan has {parts_in(self.config.plan)} parts, one per pass, but each step of this run has "
                f"{passes}; give one part per pass, or a single one for all."
            )
        outcomes, memory = [], current.memory
        needs: dict[str, Sequence[Any]] = {
            "D": (memory.detail.residuals,),
            "C": (memory.structure.residuals,),
            "R": (memory.structure.residuals, memory.detail.residuals),
            "S": memory.velocities,
        }
        for turn in range(current.together):
            letter = letter_at(self.config.plan, current, turn)
            if not all(needs.get(letter, ())):
                letter, warning = "F", _NOTHING_KEPT
            outcomes += [OUTCOMES[letter]] * current.pictures
        return Outlook(outcomes, [None] * len(outcomes), warning)


_NOTHING_KEPT = (
    "H2-Cache: some steps of the plan have nothing to reuse, since the inputs changed shape during the run or guidance "
    "changes blocks; they are computed in full."
)


def letter_at(plan: str, current: Pass, turn: int = 0) -> str:
    """The letter for the current step of a pass, or of one of the passes that it is."""
    return plan_of(plan, current.index + turn)[current.step]


def check_length(plan: str, run: Run, current: Pass) -> None:
    """Check that a plan has a letter for the current step of a pass.

    Raises:
        CacheError: it is for another number of steps.
    """
    steps = steps_in(plan)
    if (current.step == 0 and run.steps_total not in (None, steps)) or current.step >= steps:
        total = "more" if run.steps_total is None else run.steps_total
        raise CacheError(f"The plan is for {steps} steps, and this run has {total}; give one letter per step.")
