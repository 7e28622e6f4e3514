"""The pictures of a batch, one row per picture: takes some of them out of a tensor, and puts them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Rows = Sequence[int]
"""Pictures of a batch, in ascending order."""

Streams = tuple[torch.Tensor, ...]
"""The tokens that go from block to block: ``(text, image)``, which are ``(B, N_txt, D)`` and ``(B, N_img, D)``, or one
concatenated ``(B, N_txt + N_img, D)``."""


def rows_of(whole: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Some rows of a tensor: the tensor itself if they are all, a view if they are consecutive, else a copy."""
    if len(rows) == whole.shape[0]:
        return whole
    if rows[-1] - rows[0] + 1 == len(rows):
        return whole[rows[0] : rows[-1] + 1]
    return torch.cat([whole[row : row + 1] for row in rows])  # needs no index on the device


def each(whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A tensor's rows, each as a batch of one; views."""
    return whole.chunk(whole.shape[0])


def joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """The opposite of ``each``; the tensor itself if there is only one."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


def replaced(whole: torch.Tensor, *parts: tuple[Rows, torch.Tensor]) -> torch.Tensor:
    """A tensor with some rows replaced: a copy, or the part itself if it has all rows."""
    if len(parts) == 1 and len(parts[0][0]) == whole.shape[0]:
        return parts[0][1]
    pieces = list(each(whole))
    for rows, part in parts:
        for row, piece in zip(rows, each(part), strict=True):
            pieces[row] = piece
    return torch.cat(pieces)


def some_of(streams: Streams, present: Rows, rows: Rows) -> Streams:
    """The streams of some of the pictures that are present in ``streams``."""
    within = [present.index(row) for row in rows]
    return tuple(rows_of(stream, within) for stream in streams)


def merged(streams: Streams, parts: Sequence[tuple[Rows, Streams]]) -> Streams:
    """Streams of all pictures, with those of some replaced."""
    return tuple(
        replaced(stream, *((rows, part[index]) for rows, part in parts)) for index, stream in enumerate(streams)
    )
