"""Summaries when each process has a part of the tokens: together they are the summary that one process would have.

Each process pools its own tokens into the cells that the whole has. Most cells lie in one part. Of those that lie in
several, each process has a share, and the shares are added up together with the two sums of the change: once per
measured change, a few KiB. A whole summary would be up to 12 MiB at FLUX.1's size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch.nn import functional as F

from h2gen.cache.agree import Ranks
from h2gen.cache.pfs_stable import Layout, channel_weights, token_weights

Span = tuple[int, int]
"""Tokens of a stream that follow each other: the first, and the one after the last."""


class Cells(Protocol):
    """The cells of a whole stream, each of some tokens that any span may have a part of."""

    groups: int
    """Of channels."""

    def touched(self, span: Span) -> Sequence[int]:
        """The cells that have tokens of a span."""

    def pooling(self, span: Span) -> Callable[[torch.Tensor], torch.Tensor]:
        """Pools the residual of a span, ``(B, n, D)``, into its part of the cells touched, ``(B, cells, groups)``."""


class Windows:
    """The cells of the paper's PFS: windows of ``kernel`` tokens by ``kernel`` channels (see ``pfs.summarize``)."""

    def __init__(self, kernel: int, tokens: int, channels: int) -> None:
        self._size = min(kernel, tokens, channels)
        self._cells, self.groups = tokens // self._size, channels // self._size

    def touched(self, span: Span) -> Sequence[int]:
        start, stop = span
        return range(start // self._size, min(-(-stop // self._size), self._cells))

    def pooling(self, span: Span) -> Callable[[torch.Tensor], torch.Tensor]:
        return partial(self._pool, span[0])

    def _pool(self, start: int, residual: torch.Tensor) -> torch.Tensor:
        size = self._size
        if size == 1:
            return residual
        residual = residual[:, : max(self._cells * size - start, 0)]  # the rest is in no window
        if not residual.shape[1]:
            return residual.new_empty(len(residual), 0, self.groups)
        before = start % size
        after = -(before + residual.shape[1]) % size
        if before or after:
            residual = F.pad(residual, (0, 0, before, after))
        return F.avg_pool2d(residual.unsqueeze(1), size).squeeze(1)


class StableCells:
    """The cells of stable pooling (see ``pfs_stable``).

    Args:
        layout: of the whole stream.
        like: a residual with the channels, the device and the dtype of the others.
    """

    def __init__(self, layout: Layout, like: torch.Tensor) -> None:
        self._weights = token_weights(layout)
        self._of_channels = channel_weights(like.shape[-1]).to(like.device, like.dtype)
        self.groups = self._of_channels.shape[1]

    def touched(self, span: Span) -> Sequence[int]:
        found: list[int] = self._weights[:, slice(*span)].any(1).nonzero().flatten().tolist()
        return found

    def pooling(self, span: Span) -> Callable[[torch.Tensor], torch.Tensor]:
        return Weighted(self._weights[self.touched(span), slice(*span)].to(self._of_channels), self._of_channels)


class Weighted:
    """Multiplies a residual by the weights of its tokens, then by those of its channels."""

    def __init__(self, tokens: torch.Tensor, channels: torch.Tensor) -> None:
        self._tokens, self._channels = tokens, channels

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        summary: torch.Tensor = self._tokens @ residual @ self._channels
        return summary


class PartPooling:
    """Pools this process's part of a stream.

    Args:
        cells: of the whole.
        parts: the spans of each process.
        rank: of this process.
    """

    def __init__(self, cells: Cells, parts: Sequence[Sequence[Span]], rank: int) -> None:
        spans = [[span for span in each if span[0] < span[1]] for each in parts]
        times = Counter(cell for each in spans for span in each for cell in cells.touched(span))
        split = {cell: place for place, cell in enumerate(sorted(cell for cell in times if times[cell] > 1))}
        self.shared = len(split)
        """The cells that lie in several parts: the last ones of the summary."""
        touched = [cell for span in spans[rank] for cell in cells.touched(span)]
        own = [cell for cell in touched if cell not in split]
        places = {cell: place for place, cell in enumerate(own)} | {cell: len(own) + at for cell, at in split.items()}
        self._count, self._places = len(places), torch.tensor([places[cell] for cell in touched], dtype=torch.long)
        self._groups, self._sizes = cells.groups, [stop - start for start, stop in spans[rank]]
        self._pool: list[Callable[[torch.Tensor], torch.Tensor]] = [cells.pooling(span) for span in spans[rank]]

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """``(B, cells, groups)``: cells of which this process has all tokens, then its share of those that are split.

        Args:
            residual: of this process's tokens, ``(B, n, D)``.
        """
        pieces = torch.split(residual, self._sizes, 1) if self._sizes else ()
        found = [pool(piece) for pool, piece in zip(self._pool, pieces, strict=True)]
        if len(found) == 1 and not self.shared:
            return found[0]
        self._places = self._places.to(residual.device)
        summary = residual.new_zeros(len(residual), self._count, self._groups)
        return summary.index_add_(1, self._places, torch.cat(found, 1)) if found else summary


def parts_of(ranks: Ranks, text: int, own: int, image: int) -> list[list[Span]]:
    """The spans of each process in a stream of text and of the picture's own tokens.

    Args:
        text: tokens in the stream before those of the picture; each kind is shared out by itself.
        own: tokens of the picture.
        image: image tokens, those of reference pictures included.
    """
    found = []
    for rank in range(ranks.size):
        start, stop = ranks.part(image, rank)
        found.append([ranks.part(text, rank), (text + min(start, own), text + min(stop, own))])
    return found


def agreed_changes(old: torch.Tensor, new: torch.Tensor, shared: int, ranks: Ranks, *, together: bool) -> torch.Tensor:
    """``pfs.relative_changes`` of the whole, ``(B,)``, from each process's parts of the summaries.

    Args:
        old, new: as ``PartPooling`` returns them.
        shared: the cells at their end that are split.
        ranks: the processes, which all call this.
        together: one change for the whole batch, ``(1,)``.
    """
    whole = old.shape[1] - shared
    sums = [each[:, :whole].abs().sum((1, 2), dtype=torch.float32) for each in (old - new, old)]
    shares = [each[:, whole:].flatten(1).float() for each in (old, new)]
    added = ranks.add_up(torch.cat([torch.stack(sums, 1), *shares], 1))
    before, after = added[:, 2:].chunk(2, 1)
    moved, size = added[:, 0] + (before - after).abs().sum(1), added[:, 1] + before.abs().sum(1)
    return moved.sum(0, keepdim=True) / size.sum(0, keepdim=True) if together else moved / size
