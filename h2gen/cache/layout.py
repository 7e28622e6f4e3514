"""Stable pooling: a summary of as many cells whatever the size, so that one threshold means the same at all of them.

The paper's PFS pools by token counts along the sequence, row after row, so that its cells change their number and their
meaning with the size and the aspect ratio of the picture. Here the picture's own rows and columns of tokens are divided
into cells that are nearly square, text into a fixed number, and channels into a fixed number of groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

CELLS = 256
"""Of the picture: 16 x 16 of a square one, 2 x 2 tokens each at 512x512. Reference pictures beside it have as many
together. Of 16, 64 and 256, the most let the changes spread least over sizes (``tools/measure_pfs.py``)."""
TEXT_CELLS = 32
GROUPS = 64
"""Of channels."""


@dataclass(frozen=True)
class Layout:
    """How a stream's tokens lie: text, then ``rows`` times ``columns`` of the picture, then those of other pictures."""

    text: int
    rows: int
    columns: int
    others: int = 0


def layout_of(img_ids: torch.Tensor | None, image_tokens: int, text_tokens: int) -> Layout:
    """The layout that the position ids of a pipeline tell; where they tell of no grid, one long column.

    Args:
        img_ids: ``(N, axes)`` or ``(B, N, axes)``: first the picture that a token belongs to, then its row and column.
            Reading them waits for the device.
        image_tokens: N.
        text_tokens: in the stream before them.
    """
    line = Layout(text_tokens, image_tokens, 1)
    if img_ids is None:
        return line
    ids = img_ids.detach().float().cpu().numpy()
    ids = ids[0] if ids.ndim == 3 else ids
    if ids.shape[0] != image_tokens or ids.shape[1] < 3:
        return line
    own = int((ids[:, 0] == ids[0, 0]).sum())
    # By where the second row begins: in bfloat16, which knows whole numbers up to 256, neighbours beyond share an id.
    row, column = ids[:own, 1], ids[:own, 2]
    columns = int((row != row[0]).argmax()) or own
    if own % columns:
        return line
    row, column = row.reshape(-1, columns), column.reshape(-1, columns)
    if (row != row[:, :1]).any() or (column != column[:1]).any() or (columns > 1 and column[0, 0] == column[0, 1]):
        return line
    return Layout(text_tokens, own // columns, columns, image_tokens - own)


def cells_of(rows: int, columns: int) -> tuple[int, int]:
    """How many cells high and wide the picture is: about ``CELLS`` in all, nearly square ones."""
    high = min(CELLS, max(1, round(math.sqrt(CELLS * rows / columns))))
    return high, max(1, round(CELLS / high))


def areas(count: int, cells: int) -> torch.Tensor:
    """``(cells, count)``: how much of each cell each of ``count`` things in a row takes; every row adds up to 1."""
    size = count / cells
    start = torch.arange(cells, dtype=torch.float64)[:, None] * size
    thing = torch.arange(count, dtype=torch.float64)[None]
    return (torch.minimum(thing + 1, start + size) - torch.maximum(thing, start)).clamp_(min=0) / size


class Pooling:
    """Pools residuals of one layout: two multiplications by small matrices, which keep about 3 MiB at FLUX.1's size.

    Args:
        layout: of the stream.
        like: a residual, ``(B, N, D)``, whose device and dtype the others share.
    """

    def __init__(self, layout: Layout, like: torch.Tensor) -> None:
        high, wide = cells_of(layout.rows, layout.columns)
        blocks = [torch.kron(areas(layout.rows, high), areas(layout.columns, wide))]
        if layout.text:
            blocks.insert(0, areas(layout.text, TEXT_CELLS))
        if layout.others:
            blocks.append(areas(layout.others, CELLS))
        channels = like.shape[-1]
        pooled = torch.zeros(sum(len(block) for block in blocks), like.shape[1], dtype=torch.float64)
        row = column = 0
        for block in blocks:
            pooled[row : row + block.shape[0], column : column + block.shape[1]] = block
            row, column = row + block.shape[0], column + block.shape[1]
        self._tokens = pooled.to(like.device, like.dtype)
        self._groups = areas(channels, min(GROUPS, channels)).T.contiguous().to(like.device, like.dtype)

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """The summary, ``(B, cells, groups)``, of a residual, ``(B, N, D)``."""
        summary: torch.Tensor = self._tokens @ residual @ self._groups
        return summary
