"""Stable pooling: a summary with the same number of cells at any size, so that a threshold means the same at all sizes.

The paper's PFS pools along the sequence of tokens, so that the number and the meaning of its cells change with the size
and the aspect ratio of the picture. Here the picture's own rows and columns of tokens are divided into nearly square
cells, text into a fixed number of cells, and channels into a fixed number of groups. A video's tokens are divided in
time too: it has the same number of cells, each over some of its frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

CELLS = 256
"""Cells of the picture: 16 x 16 for a square one, with 2 x 2 tokens per cell at 512x512. The other pictures of a
grid that is made as a whole have the same number in total. Of 16, 64 and 256, this makes the changes depend least on
the size (``tools/measure_pfs.py``)."""
PERIODS = 4
"""Parts that a video is divided into in time, at most; each has a share of the cells."""
TEXT_CELLS = 32
GROUPS = 64
"""Groups of channels."""


@dataclass(frozen=True)
class Layout:
    """The order of a stream's tokens: text, ``frames`` times ``rows`` times ``columns`` of the picture, those of other
    pictures. A picture that is no video has one frame. If it is ``filled`` up, the other tokens are no pictures, and
    belong to no cell."""

    text: int
    rows: int
    columns: int
    others: int = 0
    frames: int = 1
    text_last: bool = False
    filled: bool = False


def layout_of(grid: tuple[int, ...] | None, image_tokens: int, text_tokens: int) -> Layout:
    """The layout of a stream; without a known grid its image tokens are one long column.

    Args:
        grid: rows and columns of the picture's own tokens, which come first among the image tokens; of a video, its
            frames before them.
        image_tokens: of the pictures that are being made.
        text_tokens: in the stream before them.
    """
    *frames, rows, columns = grid or (image_tokens, 1)
    count = math.prod(frames)
    return Layout(text_tokens, rows, columns, image_tokens - count * rows * columns, count)


def cells_of(rows: int, columns: int, cells: int = CELLS) -> tuple[int, int]:
    """The number of cells in height and width: about ``cells`` in all, nearly square ones."""
    high = min(cells, max(1, round(math.sqrt(cells * rows / columns))))
    return high, max(1, round(cells / high))


def areas(count: int, cells: int) -> torch.Tensor:
    """``(cells, count)``: the share of each cell that each of ``count`` items takes; every row sums to 1."""
    size = count / cells
    start = torch.arange(cells, dtype=torch.float64)[:, None] * size
    thing = torch.arange(count, dtype=torch.float64)[None]
    return (torch.minimum(thing + 1, start + size) - torch.maximum(thing, start)).clamp_(min=0) / size


def token_weights(layout: Layout) -> torch.Tensor:
    """``(cells, N)``, float64 on the CPU: the share of each cell that each token of a stream takes."""
    periods = min(layout.frames, PERIODS)
    high, wide = cells_of(layout.rows, layout.columns, CELLS // periods)
    plane = torch.kron(areas(layout.rows, high), areas(layout.columns, wide))
    blocks = [torch.kron(areas(layout.frames, periods), plane)]
    if layout.text:
        blocks.insert(0, areas(layout.text, TEXT_CELLS))
    if layout.others:
        blocks.append(torch.zeros(0, layout.others) if layout.filled else areas(layout.others, CELLS))
    if layout.text_last and layout.text:
        blocks.append(blocks.pop(0))
    weights = torch.zeros(sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)).double()
    row = column = 0
    for block in blocks:
        weights[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return weights


def channel_weights(channels: int) -> torch.Tensor:
    """``(channels, groups)``, float64 on the CPU: the share of each group that each channel takes."""
    return areas(channels, min(GROUPS, channels)).T.contiguous()


class Pooling:
    """Pools residuals of one layout: two multiplications by small matrices, which take about 3 MiB at FLUX.1's size and
    60 MiB for 129 frames of HunyuanVideo.

    Args:
        layout: of the stream.
        like: a residual, ``(B, N, D)``, with the device and dtype of the others.
    """

    def __init__(self, layout: Layout, like: torch.Tensor) -> None:
        self._tokens = token_weights(layout).to(like.device, like.dtype)
        self._groups = channel_weights(like.shape[-1]).to(like.device, like.dtype)

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """The summary, ``(B, cells, groups)``, of a residual, ``(B, N, D)``."""
        summary: torch.Tensor = self._tokens @ residual @ self._groups
        return summary
