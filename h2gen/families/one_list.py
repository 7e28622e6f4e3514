"""Where a single list of blocks is cut: its first third is the structure stage, the rest the detail stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_Block = TypeVar("_Block")


def cut(blocks: int) -> int:
    """The number of blocks in the structure stage."""
    return round(blocks / 3)


def in_two(blocks: Sequence[_Block]) -> tuple[Sequence[_Block], Sequence[_Block]]:
    """The blocks of the structure stage and of the detail stage."""
    return blocks[: cut(len(blocks))], blocks[cut(len(blocks)) :]


def counted_in_two(blocks: object) -> tuple[int, int] | None:
    """The numbers of blocks of the two stages, of what a configuration says; None if that is no number."""
    return (cut(blocks), blocks - cut(blocks)) if isinstance(blocks, int) else None
