"""A stage's first block as a probe: its input, its output, and the indicator computed from them."""

from __future__ import annotations

from dataclasses import replace

import torch

from h2gen.cache.agree import Ranks
from h2gen.cache.batch import Rows, Streams, some_of
from h2gen.cache.pfs import pooling_kernel, summarize
from h2gen.cache.pfs_parts import Cells, PartPooling, StableCells, Windows, parts_of
from h2gen.cache.pfs_stable import Pooling, layout_of
from h2gen.cache.stages import Stage
from h2gen.cache.step import Step
from h2gen.errors import CacheError
from h2gen.families import Family


class Probe:
    """What a stage's first block was given and returned.

    Args:
        whole: the streams before the block, of all pictures of the batch.
        before, after: the streams of those pictures that the block ran for.
    """

    def __init__(self, whole: Streams, before: Streams, after: Streams) -> None:
        self.whole, self.before, self.after = whole, before, after

    def of(self, step: Step, rows: Rows) -> Streams:
        """The block's output for some pictures."""
        return some_of(self.after, step.present, rows)

    def take(self, step: Step, rows: Rows) -> Streams:
        """The same, releasing everything else, which is large and not needed while the other blocks run."""
        streams = self.of(step, rows)
        self.whole = self.before = self.after = ()
        return streams

    @torch.no_grad()
    def indicator(self, step: Step, stage: Stage, pooling: str, family: Family) -> torch.Tensor:
        """The summary of the block's residual, ``(B, cells, groups)``: of the picture's tokens in the structure stage,
        of text and picture in the detail stage. Reference pictures do not count.

        Args:
            pooling: ``paper`` or ``stable``.
            family: knows the token grid, which stable pooling reads at a trajectory's first step.
        """
        inputs, own = step.inputs, step.picture_tokens.count
        if inputs.ranks is not None:
            return self._part(step, stage, pooling, family, inputs.ranks)
        residual = residual_of(stage.name, self.before, self.after, inputs.image_tokens - own + inputs.reference_tokens)
        tokens = residual.shape[1]
        if pooling == "paper":
            return summarize(residual, pooling_kernel(tokens, stage.divisor))
        poolings = step.current.memory.poolings
        if stage.name not in poolings:
            grid = inputs.grid or family.token_grid(inputs.identity.image_ids, inputs.image_tokens)
            # A model that makes its tokens itself may fill up those of the grid.
            filled = inputs.grid is not None
            layout = replace(layout_of(grid, own, tokens - own), text_last=family.text_last, filled=filled)
            poolings[stage.name] = Pooling(layout, residual)
        return poolings[stage.name](residual)

    def _part(self, step: Step, stage: Stage, pooling: str, family: Family, ranks: Ranks) -> torch.Tensor:
        """This process's part of the indicator (see ``PartPooling``)."""
        inputs, own, poolings = step.inputs, step.picture_tokens.count, step.current.memory.poolings
        start, stop = ranks.part(inputs.image_tokens)
        residual = residual_of(stage.name, self.before, self.after, stop - max(start, min(stop, own)))
        text = 0 if stage.name == "structure" else inputs.text_tokens
        if stage.name not in poolings:
            parts = parts_of(ranks, text, own, inputs.image_tokens)
            if sum(end - begin for begin, end in parts[ranks.rank]) != residual.shape[1]:
                raise CacheError("H2-Cache needs text and image tokens to be split evenly; switch it off.")
            cells: Cells
            if pooling == "paper":
                cells = Windows(pooling_kernel(own + text, stage.divisor), own + text, residual.shape[2])
            else:
                grid = inputs.grid or family.token_grid(inputs.identity.image_ids, inputs.image_tokens)
                cells = StableCells(layout_of(grid, own, text), residual)
            poolings[stage.name] = PartPooling(cells, parts, ranks.rank)
        return poolings[stage.name](residual)


def residual_of(stage: str, before: Streams, after: Streams, references: int = 0) -> torch.Tensor:
    """What a stage's first block added, ``(B, N, D)``: to the image tokens in the structure stage, to text and image
    tokens in the detail stage.

    Args:
        references: the number of tokens at the end that are left out.
    """
    if stage == "structure":
        before, after = before[-1:], after[-1:]
    if references:
        before, after = ((*streams[:-1], streams[-1][:, :-references]) for streams in (before, after))
    tokens = sum(x.shape[1] for x in after)
    residual = after[0].new_empty(after[0].shape[0], tokens, after[0].shape[2])
    start = 0
    for x, y in zip(before, after, strict=True):
        torch.sub(y, x, out=residual[:, start : start + x.shape[1]])
        start += x.shape[1]
    return residual
