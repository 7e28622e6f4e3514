"""The words for what happened at a step, how many steps there are of each, and what all of them cost."""

from __future__ import annotations

from h2gen.cache.summary import Summary
from h2gen.cache.trace import StepRecord


def outcome_of(record: StepRecord) -> str:
    """One of: full, guarded, detail reused, structure reused, all reused, skipped."""
    if record.skipped:
        return "skipped"
    if record.all_reused:
        return "all reused"
    if record.structure_reused:
        return "structure reused"
    if record.detail_reused:
        return "detail reused"
    return "guarded" if record.guarded else "full"


def by_outcome(summary: Summary) -> list[tuple[str, int]]:
    """Steps per outcome; those that only policies cause are left out if there are none."""
    beyond = [("structure reused", summary.structure_reused), ("skipped", summary.skipped)]
    paper = [("full", summary.full), ("detail reused", summary.detail_reused), ("all reused", summary.all_reused)]
    return [*paper, *((word, count) for word, count in beyond if count)]


def cost(share: float, steps: int | None = None) -> str:
    """A share of the blocks and the speed-up that it suggests, such as ``47% of blocks, est. 2.13x``.

    Args:
        share: blocks run, as a share of those of the uncached run that was asked for.
        steps: of that run, if they have to be said because this one differs in more than its cache.
    """
    whole = "blocks" if steps is None else f"the blocks of {steps} steps"
    return f"{share:.0%} of {whole}" + (f", est. {1 / share:.2f}x" if share else "")
