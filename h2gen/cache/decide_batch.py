"""The decisions on one stage for a batch of pictures: measure changes, decide per picture, remember indicators."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from h2gen.cache.batch import Rows, rows_of, some_of
from h2gen.cache.config import CacheConfig
from h2gen.cache.decide import decide_by_change, decide_detail_unseen
from h2gen.cache.outcome import UNDECIDED, Outcome
from h2gen.cache.pfs import relative_change, relative_changes
from h2gen.cache.pfs_parts import PartPooling, agreed_changes
from h2gen.cache.policies import Policy
from h2gen.cache.probe import Probe
from h2gen.cache.stages import Stage
from h2gen.cache.step import Step
from h2gen.families import Family


class BatchDecision:
    """Decides a stage, picture by picture, or once for a batch that cannot be split.

    Args:
        config: of the cache.
        policy: its thresholds, tolerance or plan.
        family: of the transformer.
        begun_again: whether a step turns out to be the first of a new trajectory (``Tracker.begun_again``).
        warn: warns the user, once per message.
    """

    def __init__(
        self,
        config: CacheConfig,
        policy: Policy,
        family: Family,
        begun_again: Callable[[Step], bool],
        warn: Callable[[str], None],
    ) -> None:
        self._config, self._policy, self._family = config, policy, family
        self._begun_again, self._warn = begun_again, warn

    def unseen(self, step: Step, stage: Stage) -> None:
        """Decide the detail stage of those pictures whose change need not be measured."""
        memory = step.memory(stage.name)
        if not memory.residuals:
            return
        for row in step.undecided(stage.name):
            structure, age = step.outcome("structure", row), step.index - memory.computed_at[row]
            step.outcomes[stage.name][row] = decide_detail_unseen(structure, age, self._config)

    def by_change(self, step: Step, stage: Stage, probe: Probe) -> None:
        """Decide the pictures that are not decided yet, and remember the indicator of those that will be computed."""
        tau, outcomes = self._policy.tau(stage.name), step.outcomes[stage.name]
        looked = [row for row in step.present if outcomes[row] in (UNDECIDED, Outcome.GUARDED)]
        if tau == 0 or not looked:
            return
        indicator = probe.indicator(step, stage, self._config.pfs, self._family)
        undecided = step.undecided(stage.name)
        changes = self._changes(step, stage, indicator, undecided)
        for row in undecided:
            outcomes[row] = decide_by_change(changes.get(row), tau)
        if not step.inputs.separable and step.ran(stage.name):  # one decision for the batch: all are computed
            outcomes[:] = [outcome if outcome and outcome.ran else Outcome.COMPUTED for outcome in outcomes]
        self._remember(step, stage, indicator, looked, changes)

    def _changes(self, step: Step, stage: Stage, indicator: torch.Tensor, rows: Rows) -> dict[int, float]:
        """The change of each picture since its stage was last computed, if anything is kept; with a budget, the sum of
        the changes from step to step since then. Waits for the device, once."""
        memory = step.memory(stage.name)
        if not rows or memory.indicator is None or not memory.residuals:
            return {}
        old, (new,) = rows_of(memory.indicator, rows), some_of((indicator,), step.present, rows)
        together, ranks = not step.inputs.separable, step.inputs.ranks
        measured: list[float]
        if ranks is not None:
            pooling = step.current.memory.poolings[stage.name]
            assert isinstance(pooling, PartPooling)
            measured = agreed_changes(old, new, pooling.shared, ranks, together=together).tolist()
            measured *= len(rows) if together else 1
        elif not together:
            measured = relative_changes(old, new).tolist()
        else:
            measured = [relative_change(old, new).item()] * len(rows)
        if self._begun_again(step):  # an accelerator knows the timestep only now: what was kept is of another run
            return {}
        if not all(map(math.isfinite, measured)):
            self._warn("H2-Cache: a change is not finite; such steps are computed in full.")
        changes = {row: memory.spent[row] + change for row, change in zip(rows, measured, strict=True)}
        for row, change in changes.items():
            step.changes[stage.name][row] = change
        return changes

    def _remember(
        self, step: Step, stage: Stage, indicator: torch.Tensor, looked: Rows, changes: dict[int, float]
    ) -> None:
        """Keep the indicator of the pictures that will be computed; with a budget, of all that were measured."""
        memory, computed = step.memory(stage.name), step.ran(stage.name)
        moved = [row for row in looked if row in computed or self._config.budget]
        if not moved:
            return
        (part,) = some_of((indicator,), step.present, moved)
        memory.keep_indicator(part, moved)
        for row in moved:
            memory.spent[row] = 0.0 if row in computed else changes[row]
