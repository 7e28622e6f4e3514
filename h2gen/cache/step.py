"""One forward pass while it runs, and until the device has finished it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from h2gen.cache.batch import Rows
from h2gen.cache.inputs import Inputs, as_timestep
from h2gen.cache.kept import KeptBytes
from h2gen.cache.memory import StageMemory
from h2gen.cache.outcome import UNDECIDED, Decision, Outcome, Outlook
from h2gen.cache.passes import Pass
from h2gen.cache.picture_tokens import PictureTokens
from h2gen.cache.stopwatch import Stopwatch
from h2gen.cache.trace import StageRecord, StepRecord
from h2gen.cache.trajectory import Run
from h2gen.families.token_grid import own_tokens


class Step:
    """One forward pass while it runs. Its lists have one entry per picture of the batch.

    Args:
        run, current: the trajectory and the pass that it belongs to.
        timestep: 0 to 1000; a tensor if only the device knows it.
        outlook: what is known beforehand.
    """

    def __init__(
        self, run: Run, current: Pass, inputs: Inputs, timestep: float | torch.Tensor, outlook: Outlook
    ) -> None:
        self.run, self.current, self.inputs = run, current, inputs
        self.index = current.step
        self.timestep = timestep
        self.errors = outlook.errors
        structure, detail = zip(*outlook.outcomes, strict=True)
        self.outcomes: dict[str, list[Decision]] = {"structure": list(structure), "detail": list(detail)}
        self.changes: dict[str, list[float | None]] = {name: [None] * len(structure) for name in self.outcomes}
        self.present: Rows = [row for row, outcome in enumerate(structure) if outcome is not Outcome.SKIPPED]
        """The pictures that any block runs for."""
        self.running = self.present
        """The pictures that the current stage's next block runs for."""
        self.blocks_run: list[float] = [0] * len(structure)
        """The blocks that have run for each picture so far; one that sees a part of the tokens counts as that part."""
        self.through: set[str] = set()
        """The stages whose blocks between the first and the last all run, for all pictures."""
        self.whole: set[str] = set()
        """Of these, the ones whose first and last block do too, and of which nothing is measured and nothing kept."""
        self.passed: defaultdict[str, int] = defaultdict(int)
        """By stage, how many of these blocks have run that are not in ``blocks_run`` yet."""
        self.exact: set[str] = set() if self.skipped else current.memory.results.known(inputs.constants)
        """The own blocks, by kind, whose kept result is still the same."""
        self.output: Any = None
        """What the transformer returns, if it was forecast without running it."""
        self.watch = Stopwatch(inputs.device)

    @property
    def pictures(self) -> int:
        """In the batch."""
        return len(self.errors)

    def memory(self, stage: str) -> StageMemory:
        """What the pass keeps of a stage."""
        return self.current.memory.of(stage)

    @property
    def own(self) -> torch.Tensor | None:
        """Which image tokens are the picture's own (see ``own_tokens``); None if the model makes the tokens itself:
        then all are."""
        memory, inputs = self.current.memory, self.inputs
        if memory.own is None and inputs.grid is None:
            memory.own = own_tokens(inputs.identity.image_ids, inputs.image_tokens, inputs.device)
        return memory.own

    @property
    def picture_tokens(self) -> PictureTokens:
        """The picture's own tokens among the image tokens. Asked for as the pass begins, it need not be waited for."""
        memory, inputs = self.current.memory, self.inputs
        if memory.picture_tokens is None:
            memory.picture_tokens = PictureTokens(inputs.identity.image_ids, inputs.image_tokens)
        return memory.picture_tokens

    def undecided(self, stage: str) -> Rows:
        """The pictures for which the stage's change decides."""
        return [row for row in self.present if self.outcomes[stage][row] is UNDECIDED]

    def outcome(self, stage: str, row: int) -> Outcome:
        """The outcome of a stage of a picture; computed unless something else is decided."""
        return self.outcomes[stage][row] or Outcome.COMPUTED

    def ran(self, stage: str) -> set[int]:
        """The pictures for which all blocks of a stage run."""
        return {row for row in range(self.pictures) if self.outcome(stage, row).ran}

    def count(self, stage: str, rows: Rows | None, blocks: int = 1) -> None:
        """Blocks of a stage have run for some pictures of the batch; None for all."""
        for row in range(self.pictures) if rows is None else rows:
            self.blocks_run[row] += blocks * self.inputs.parts.get(stage, 1)

    @property
    def skipped(self) -> bool:
        """Whether no block runs at all."""
        return not self.present

    @property
    def interval(self) -> float | None:
        """How far the picture moves along the velocity, in sigma, if the schedule says so."""
        schedule = self.run.schedule
        return None if schedule is None or schedule.intervals is None else schedule.intervals[self.index]

    @property
    def sigma(self) -> float:
        """Its sigma, 1 to 0; only for policies that need it, for which it is known."""
        assert isinstance(self.timestep, float)
        return self.timestep / 1000


class FinishedStep:
    """A picture's step whose duration and timestep may not be known yet. ``picture`` is its row in the batch."""

    def __init__(self, step: Step, picture: int, blocks_run: float, blocks_total: float, exact: float = 0) -> None:
        self._watch, self._timestep, self._pictures = step.watch, step.timestep, step.pictures
        self.kept = KeptBytes() if picture or step.skipped else step.run.kept
        """The size of what is kept of a picture after this step."""
        turn, of = divmod(picture, step.current.pictures)
        self._rest: dict[str, Any] = {
            "run": step.run.index,
            "step": step.index,
            "context": step.current.context_of(turn),
            **{
                stage: StageRecord(changes[picture], step.outcome(stage, picture))
                for stage, changes in step.changes.items()
            },
            "blocks_run": _number(blocks_run),
            "blocks_total": _number(blocks_total),
            "exact": _number(exact),
            "picture": of,
            "error": step.errors[picture],
        }

    @property
    def ready(self) -> bool:
        return self._watch.ready

    def record(self) -> StepRecord:
        seconds = self._watch.seconds / self._pictures  # waits; the timestep's copy was queued before its end
        timestep = self._timestep if isinstance(self._timestep, float) else as_timestep(self._timestep)
        return StepRecord(timestep=timestep, sigma=timestep / 1000, seconds=seconds, **self._rest)


def _number(blocks: float) -> float:
    """A sum of blocks and parts of blocks, without what rounding left of it."""
    rounded = round(blocks, 4)
    return int(rounded) if rounded == int(rounded) else rounded
