"""The words for what happened at a step, and how many steps there are of each."""

from __future__ import annotations

from h2gen.cache.trace import StepRecord, Summary


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
