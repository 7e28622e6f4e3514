"""Families with a single list of blocks: its first third is the structure stage, the rest the detail stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.families.contract import Family

if TYPE_CHECKING:
    from torch import nn


class OneListFamily(Family):
    """A transformer whose stages are cut out of one list of blocks."""

    blocks: ClassVar[str]
    """The list's name in the transformer."""
    count: ClassVar[str] = "num_layers"
    """The name of its length in the transformer's configuration."""

    def block_lists(self, transformer: nn.Module) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        blocks = list(getattr(transformer, self.blocks))
        return blocks[: cut(len(blocks))], blocks[cut(len(blocks)) :]

    def stages(self, transformer_config: Mapping[str, Any]) -> tuple[int, int] | None:
        count = transformer_config.get(self.count)
        return (cut(count), count - cut(count)) if isinstance(count, int) else None


def cut(blocks: int) -> int:
    """The number of blocks in the structure stage."""
    return round(blocks / 3)
