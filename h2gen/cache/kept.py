"""The size of what the cache keeps from step to step. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeptBytes:
    """The most that is kept of one picture at a time, in all of its passes.

    Args:
        residuals: of stages that may be reused, and results of blocks that are the same at every step.
        velocities: to forecast those of skipped steps.
        decisions: what changes are measured by.
    """

    residuals: int = 0
    velocities: int = 0
    decisions: int = 0

    @property
    def total(self) -> int:
        return self.residuals + self.velocities + self.decisions

    def __add__(self, other: KeptBytes) -> KeptBytes:
        return KeptBytes(*(mine + its for mine, its in zip(*map(_numbers, (self, other)), strict=True)))

    def of_one(self, pictures: int) -> KeptBytes:
        """That of one picture of a batch."""
        return KeptBytes(*(number // max(pictures, 1) for number in _numbers(self)))

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "total": self.total}

    def __str__(self) -> str:
        """``51.2 MB per picture (residuals 50.5, velocities 0.5, decisions 0.2)``."""
        parts = ", ".join(f"{name} {number / 1e6:.2g}" for name, number in vars(self).items())
        return f"{self.total / 1e6:.3g} MB per picture ({parts})"


def _numbers(kept: KeptBytes) -> tuple[int, ...]:
    return tuple(vars(kept).values())
