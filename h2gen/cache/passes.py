"""One of the passes of guidance, over all steps of a trajectory: its counts, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from h2gen.cache.memory import Memory

CONTEXTS = "cond", "uncond", "third"
"""The names of passes that the pipeline does not name."""


@dataclass
class Pass:
    """One of the passes of guidance, or the only one, over all steps of a trajectory.

    ``index`` counts the passes of a step from 0; ``step`` is the step that it is at, or ran in last. ``since_full`` has
    the number of steps since the last full one for each picture of the batch.
    """

    context: str
    index: int
    new_memory: Callable[[int], Memory]
    step: int = 0
    signature: tuple[Any, ...] = ()
    since_full: list[int] = field(default_factory=list)
    together: int = 1
    """The passes of guidance that this one is, one after the other in its batch; ``since_full`` has all rows."""
    memory: Memory = field(init=False)

    def __post_init__(self) -> None:
        self.forget()

    @property
    def pictures(self) -> int:
        """In the batch."""
        return len(self.since_full) // self.together

    def fit(self, signature: tuple[Any, ...], pictures: int, together: int = 1) -> None:
        """Forget what was kept if the inputs are of another kind now."""
        self.together = together
        if self.signature != signature:
            self.signature = signature
            if len(self.since_full) != pictures:
                self.since_full = [0] * pictures
            self.forget()

    def context_of(self, turn: int) -> str:
        """The name of one of the passes that this one is."""
        return self.context if not turn else CONTEXTS[min(turn, len(CONTEXTS) - 1)]

    def forget(self) -> None:
        """Drop the tensors, keep the counts."""
        self.memory = self.new_memory(len(self.since_full))
