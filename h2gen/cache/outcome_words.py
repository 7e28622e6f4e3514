"""The word for what happened at a step."""

from __future__ import annotations

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
