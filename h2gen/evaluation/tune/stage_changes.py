"""Predicts which blocks thresholds would run, from one uncached run: without making an image per setting.

An uncached run shows how much each stage's indicator changes between any two of its steps. From that the decisions of
any thresholds, guards and pooling can be computed step by step, by the cache's own rules. They are exact up to the
first reuse, which changes what the later steps see; so predicted settings are measured before they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from h2gen.cache.config import CacheConfig
from h2gen.cache.decide import decide_by_change, decide_detail_unseen
from h2gen.cache.outcome import UNDECIDED, Decision, Outcome
from h2gen.cache.pfs import pooling_kernel, relative_changes, summarize
from h2gen.cache.pfs_stable import Pooling, layout_of
from h2gen.cache.picture_tokens import PictureTokens
from h2gen.cache.policies.guards import is_guarded
from h2gen.cache.probe import residual_of
from h2gen.cache.stages import Stage, stages_of
from h2gen.errors import RunError
from h2gen.evaluation.tune.forecast_errors import Matrix
from h2gen.families import family_of
from h2gen.families.given import argument_names, named

POOLINGS = ("paper", "stable")


@dataclass(frozen=True)
class StageChanges:
    """The changes of one image.

    Args:
        changes: for each pass of a step, by pooling and stage: ``(n, n)``, ``[i, j]`` is the change from step i to a
            later step j; NaN elsewhere.
        blocks: number of blocks in the structure stage and in the detail stage.
    """

    changes: Sequence[Mapping[tuple[str, str], Matrix]]
    blocks: tuple[int, int]

    def share(self, cache: CacheConfig) -> float:
        """The share of the blocks that thresholds would run."""
        run = total = 0
        for each in self.changes:
            structure, detail = each[cache.pfs, "structure"], each[cache.pfs, "detail"]
            for outcomes in decisions(cache, structure, detail):
                run += sum(count if outcome.ran else 1 for outcome, count in zip(outcomes, self.blocks, strict=True))
                total += sum(self.blocks)
        return run / total


def decisions(cache: CacheConfig, structure: Matrix, detail: Matrix) -> Iterator[tuple[Outcome, Outcome]]:
    """The outcomes of both stages at each step of a pass, as thresholds and guards decide them.

    Args:
        cache: without a tolerance or a plan.
        structure, detail: changes of the stages, as in ``StageChanges``.
    """
    first, second = _StageState(cache.tau1, structure), _StageState(cache.tau2, detail)
    since_full = 0
    for step in range(len(structure)):
        if is_guarded(cache, step, len(structure), since_full):
            above = first.outcome(step, Outcome.GUARDED, cache.budget)
            below = second.outcome(step, Outcome.GUARDED, cache.budget)
        else:
            above = first.outcome(step, UNDECIDED, cache.budget)
            unseen = UNDECIDED
            if second.computed_at is not None and (cache.tau1 > 0 or cache.tau2 > 0):
                unseen = decide_detail_unseen(above, step - second.computed_at, cache)
            below = second.outcome(step, unseen, cache.budget)
        since_full = 0 if above.ran and below.ran else since_full + 1
        yield above, below


class _StageState:
    """What the cache keeps of a stage: the step that it last compared with, and the one that it computed last."""

    def __init__(self, tau: float, changes: Matrix) -> None:
        self._tau, self._changes = tau, changes
        self._looked_at: int | None = None
        self._spent = 0.0
        self.computed_at: int | None = None

    def outcome(self, step: int, decision: Decision, budget: bool) -> Outcome:
        """The outcome of the stage at a step, given the decision that can be made without its change."""
        found = decision or Outcome.COMPUTED
        if self._tau > 0 and decision in (UNDECIDED, Outcome.GUARDED):
            change = None
            if decision is UNDECIDED:
                if self._looked_at is not None:
                    change = self._spent + float(self._changes[self._looked_at, step])
                found = decide_by_change(change, self._tau)
            if found.ran or budget:
                self._looked_at = step
                self._spent = 0.0 if found.ran else change or 0.0
        if found.ran:
            self.computed_at = step
        return found


class ChangesRecording:
    """Hooks that keep each step's indicators, in host memory. ``finish`` compares them."""

    def __init__(self, transformer: nn.Module, passes: int, steps: int) -> None:
        self._family, self._stages = family_of(transformer), stages_of(transformer)
        self._passes, self._steps = passes, steps
        self._names = argument_names(type(transformer).forward)
        self._image_ids: torch.Tensor | None = None
        self._grid: tuple[int, ...] | None = None
        self._image_tokens = self._references = 0
        self._picture: PictureTokens | None = None
        self._poolings: dict[tuple[str, int], Pooling] = {}
        self._indicators: list[dict[tuple[str, str], torch.Tensor]] = []

    def begin(self, _module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Called by a hook, before a forward pass, which may have a row for each of a step's passes."""
        inputs = self._family.pass_inputs(named(self._names, args, kwargs))
        self._image_ids, self._image_tokens, self._grid = inputs.image_ids, inputs.image_tokens, inputs.grid
        self._references = 0 if inputs.references is None else inputs.references.shape[1]
        self._picture = self._picture or PictureTokens(self._image_ids, self._image_tokens)
        self._indicators += [{} for _ in inputs.latents]

    @torch.no_grad()
    def after_first(self, stage: Stage, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Called by a hook, after a stage's first block."""
        before = self._family.block_streams(stage.name, args, kwargs)
        assert self._picture is not None
        own, after = self._picture.count, self._family.output_streams(stage.name, output)
        residual = residual_of(stage.name, before, after, self._image_tokens - own + self._references)
        tokens = residual.shape[1]
        key = stage.name, tokens  # with true guidance, texts may differ in length
        if key not in self._poolings:
            grid = self._grid or self._family.token_grid(self._image_ids, self._image_tokens)
            layout = layout_of(grid, own, tokens - own)
            layout = replace(layout, text_last=self._family.text_last, filled=self._grid is not None)
            self._poolings[key] = Pooling(layout, residual)
        indicators = summarize(residual, pooling_kernel(tokens, stage.divisor)), self._poolings[key](residual)
        for pooling, indicator in zip(POOLINGS, indicators, strict=True):
            for found, row in zip(self._indicators[-len(indicator) :], indicator, strict=True):
                found[pooling, stage.name] = row.to("cpu", copy=True)

    def finish(self) -> StageChanges:
        """The changes between all steps of the last image.

        Raises:
            RunError: the model ran fewer passes than an image has.
        """
        count = self._passes * self._steps
        if len(self._indicators) < count:
            raise RunError(f"The model ran {len(self._indicators)} passes, fewer than the {count} of an image.")
        last = self._indicators[-count:]  # if memory ran out, the image was made twice
        structure, detail = (len(stage.blocks) for stage in self._stages)
        return StageChanges(
            [
                {key: _changes([indicators[key] for indicators in last[index :: self._passes]]) for key in last[0]}
                for index in range(self._passes)
            ],
            (structure, detail),
        )


@contextmanager
def recording_changes(transformer: nn.Module, *, passes: int, steps: int) -> Iterator[ChangesRecording]:
    """Record the image that is made inside a ``with`` block.

    Args:
        transformer: of any of the families, without a cache.
        passes: forward passes per step; 2 with true guidance.
        steps: of the image, with the model's own solver.

    Raises:
        CacheError: the model belongs to no family.
    """
    record = ChangesRecording(transformer, passes, steps)
    handles = [transformer.register_forward_pre_hook(record.begin, with_kwargs=True)]
    try:
        for stage in stages_of(transformer):

            def after(_m: Any, args: Any, kwargs: Any, output: Any, stage: Stage = stage) -> None:
                record.after_first(stage, args, kwargs, output)

            handles.append(stage.blocks[0].register_forward_hook(after, with_kwargs=True))
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _changes(indicators: Sequence[torch.Tensor]) -> Matrix:
    stacked = torch.stack(list(indicators))
    found = np.full((len(stacked), len(stacked)), np.nan)
    for step in range(len(stacked) - 1):
        found[step, step + 1 :] = relative_changes(stacked[step : step + 1], stacked[step + 1 :]).numpy()
    return found
