"""What happens to one stage of one picture at one step, and what is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple


class Outcome(str, Enum):
    """What happened to one stage at one step."""

    COMPUTED = "computed"  #: its blocks ran: the change was too large, or there was nothing to compare with
    REUSED = "reused"  #: a hit: only its first block ran, the kept residual was added
    FORCED = "forced"  #: reused without a check, because the structure stage was a hit (the hierarchy)
    GUARDED = "guarded"  #: its blocks ran without a check: a guard, the residual's age or a correction required it
    SKIPPED = "skipped"  #: not even its first block ran: the transformer's output was forecast

    def __str__(self) -> str:
        return self.value

    @property
    def ran(self) -> bool:
        """Whether all blocks of the stage ran."""
        return self in (Outcome.COMPUTED, Outcome.GUARDED)


UNDECIDED = None
"""The outcome of a stage whose first block must run before its change can be compared with the threshold."""

Decision = Outcome | None
"""An outcome, or ``UNDECIDED``."""


class Outlook(NamedTuple):
    """What is known about a step before any of its blocks runs: one entry per picture of the batch."""

    outcomes: Sequence[tuple[Decision, Decision]]
    """Of the structure stage and of the detail stage."""
    errors: Sequence[float | None]
    """How far each picture would be off if the step were skipped; None if that is not known."""
    warning: str = ""
    """A warning for the user, shown once."""
