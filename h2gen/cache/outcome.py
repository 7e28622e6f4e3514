"""What became of one stage at one step."""

from __future__ import annotations

from enum import Enum


class Outcome(str, Enum):
    """What happened to one stage at one step."""

    COMPUTED = "computed"  #: its blocks ran: the change was too large, or there was nothing to compare with
    REUSED = "reused"  #: a hit: only its first block ran, the kept residual was added
    FORCED = "forced"  #: reused without a check, because the structure stage was a hit (the hierarchy)
    GUARDED = (
        "guarded"  #: its blocks ran without a check: a guard wanted it, its residual was too old, or it makes good
    )
    SKIPPED = "skipped"  #: not even its first block ran: the transformer's output was forecast

    def __str__(self) -> str:
        return self.value

    @property
    def ran(self) -> bool:
        """Whether all blocks of the stage ran."""
        return self in (Outcome.COMPUTED, Outcome.GUARDED)
