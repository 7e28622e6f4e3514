"""Plans: what to do at each step, decided beforehand, a letter a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from h2gen.cache.outcome import Outcome
from h2gen.errors import SettingError

if TYPE_CHECKING:
    from h2gen.cache.trace import StepRecord

OUTCOMES = {
    "F": (Outcome.COMPUTED, Outcome.COMPUTED),
    "D": (Outcome.COMPUTED, Outcome.REUSED),
    "C": (Outcome.REUSED, Outcome.COMPUTED),
    "R": (Outcome.REUSED, Outcome.FORCED),
    "S": (Outcome.SKIPPED, Outcome.SKIPPED),
}
"""What each letter makes of the structure and of the detail stage."""

_MEANINGS = "F full, D detail reused, C structure reused, R both reused, S skipped"
_LONGEST = 50_000
"""Letters."""


def check_plan(text: str) -> str:
    """A plan without blanks and commas, in capital letters.

    With true guidance the passes may have a plan each, with a ``/`` between them: ``FRRF/FRFR``. A plan alone holds for
    all of them.

    Raises:
        SettingError: a letter means nothing, the first is not F, or the parts differ in length.
    """
    plan = "".join(text.replace(",", " ").split()).upper()
    if len(plan) > _LONGEST:
        raise SettingError(f"plan has {len(plan)} letters; no run has so many steps.")
    parts = plan.split("/") if plan else []
    for part in parts:
        for step, letter in enumerate(part, 1):
            if letter not in OUTCOMES:
                raise SettingError(f"plan has {letter!r} at step {step}; its letters are {_MEANINGS}.")
        if not part.startswith("F"):
            raise SettingError(
                f"plan begins with {part[:1]!r}; its first step must be F, since nothing is kept before it."
            )
        if len(part) != len(parts[0]):
            raise SettingError(
                f"plan is of {len(parts[0])} steps for one pass and of {len(part)} for another; give as many."
            )
    return plan


def plan_of(plan: str, turn: int) -> str:
    """The letters for a pass of true guidance, counted from 0; the last part holds for the passes after it too."""
    parts = plan.split("/")
    return parts[min(turn, len(parts) - 1)]


def steps_in(plan: str) -> int:
    """How many steps a plan is for."""
    return len(plan_of(plan, 0))


def parts_in(plan: str) -> int:
    """How many passes a plan has a part for; 1 where it holds for all of them."""
    return plan.count("/") + 1


def reuses(plan: str, stage: str) -> bool:
    """Whether a stage's residual will ever be wanted: a plan may know that it will not, and no plan does not."""
    return not plan or not {"R", "C" if stage == "structure" else "D"}.isdisjoint(plan)


def letter_of(structure: Outcome, detail: Outcome) -> str:
    """What a plan calls a step in which this became of its stages."""
    if structure is Outcome.SKIPPED:
        return "S"
    return {(True, True): "F", (True, False): "D", (False, True): "C", (False, False): "R"}[structure.ran, detail.ran]


def plan_from_steps(steps: Iterable[StepRecord]) -> str:
    """The plan that repeats the decisions of one run, of one picture."""
    passes: dict[str, str] = {}
    for record in steps:
        letter = letter_of(record.structure.outcome, record.detail.outcome)
        passes[record.context] = passes.get(record.context, "") + letter
    return joined(passes.values())


def joined(parts: Iterable[str]) -> str:
    """One plan of each pass's: a single one where they do not differ."""
    distinct = list(parts)
    return distinct[0] if len(set(distinct)) == 1 else "/".join(distinct)
