"""Totals over the steps of a run: outcomes, blocks and seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from h2gen.cache.trace import StepRecord

_KINDS = ("full", "detail_reused", "structure_reused", "all_reused", "skipped")  # exactly one is true of a step


@dataclass(frozen=True)
class Summary:
    """Totals over forward passes; ``steps`` is the sum of full, reused (of three kinds) and skipped ones.

    ``blocks_total`` are the blocks of the uncached run that was asked for, ``share`` is the blocks run as a share of
    them, ``estimated_speedup`` its inverse, ``seconds`` what the passes took, and ``not_finite`` the number of changes
    that were NaN or Inf. ``blocks_exact`` are the blocks that did not run because their result is the same at every
    step; blocks that see only a part of the tokens count as that part.
    """

    steps: int = 0
    full: int = 0
    detail_reused: int = 0
    all_reused: int = 0
    blocks_run: float = 0
    blocks_total: float = 0
    seconds: float = 0.0
    not_finite: int = 0
    structure_reused: int = 0
    skipped: int = 0
    blocks_exact: float = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})

    def against(self, reference: float) -> Summary:
        """The totals against an uncached run that has ``reference`` times as many passes as this one."""
        return replace(self, blocks_total=round(reference * self.blocks_total))

    @property
    def share(self) -> float:
        return self.blocks_run / self.blocks_total if self.blocks_total else 1.0

    @property
    def estimated_speedup(self) -> float:
        return 1 / self.share if self.share else math.inf

    @property
    def exactly(self) -> str:
        """``; 6% of blocks reused exactly``, or nothing."""
        return f"; {self.blocks_exact / self.blocks_total:.1%} of blocks reused exactly" if self.blocks_exact else ""

    def by_outcome(self) -> list[tuple[str, int]]:
        """Passes per outcome, in the words of the live table; outcomes that did not happen are left out."""
        return [(kind.replace("_", " "), count) for kind in _KINDS if (count := getattr(self, kind))]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {word}" for word, count in self.by_outcome())
        return f"{cost(self.share)}; {self.steps} passes" + (f": {counts}" if counts else "") + self.exactly

    def to_json(self) -> dict[str, Any]:
        """The totals as written to a trace file's last line."""
        return {
            "passes": self.steps,
            **{kind: getattr(self, kind) for kind in _KINDS},
            "blocks_run": self.blocks_run,
            "blocks_total": self.blocks_total,
            "share": self.share,
            "estimated_speedup": self.estimated_speedup if self.share else None,
            "seconds": self.seconds,
            "not_finite": self.not_finite,
            **({"blocks_exact": self.blocks_exact} if self.blocks_exact else {}),
        }


def cost(share: float, steps: int | None = None) -> str:
    """A share of the blocks and the speed-up that it suggests, such as ``47% of blocks, est. 2.13x``.

    Args:
        share: blocks run, as a share of those of the uncached run that was asked for.
        steps: of that run, if they have to be said because this one differs in more than its cache.
    """
    whole = "blocks" if steps is None else f"the blocks of {steps} steps"
    return f"{share:.0%} of {whole}" + (f", est. {1 / share:.2f}x" if share else "")


def summarize_steps(steps: Iterable[StepRecord]) -> Summary:
    """Add up the steps of one trajectory or of many, as shares of all of their own blocks."""
    records = list(steps)
    return Summary(
        **{kind: sum(getattr(record, kind) for record in records) for kind in _KINDS},
        steps=len(records),
        blocks_run=sum(record.blocks_run for record in records),
        blocks_total=sum(record.blocks_total for record in records),
        seconds=sum(record.seconds for record in records),
        blocks_exact=sum(record.exact for record in records),
        not_finite=sum(stage.not_finite for record in records for stage in (record.structure, record.detail)),
    )
