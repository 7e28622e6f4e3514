"""The two stages of a transformer, structure and detail, and the blocks of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from h2gen.errors import CacheError
from h2gen.families import Family, family_of


@dataclass(frozen=True)
class Stage:
    """A sequence of blocks that is computed or reused as a whole.

    Args:
        name: ``structure`` or ``detail``; of the blocks that see one kind of tokens only, that kind.
        blocks: in the order in which the model calls them.
        divisor: the number of tokens at which the paper's PFS begins to pool; 0 for blocks that no threshold decides.
    """

    name: str
    blocks: Sequence[nn.Module]
    divisor: int = 0

    @property
    def own(self) -> bool:
        """Whether its blocks see one kind of tokens only, and belong to neither of the two stages."""
        return not self.divisor


def stages_of(transformer: nn.Module, family: Family | None = None) -> tuple[Stage, Stage]:
    """The structure stage and the detail stage of a transformer.

    Args:
        family: if it is known already.

    Raises:
        CacheError: it belongs to no known family, or has no blocks of one kind.
    """
    structure, detail = (family or family_of(transformer)).block_lists(transformer)
    if not structure or not detail:
        raise CacheError(
            f"H2-Cache needs blocks in both stages; this {type(transformer).__name__} has {len(structure)} for the "
            f"structure and {len(detail)} for the detail."
        )
    return Stage("structure", structure, 2048), Stage("detail", detail, 384)


def own_stages_of(transformer: nn.Module, family: Family | None = None) -> tuple[Stage, ...]:
    """The blocks that come before the stages and see one kind of tokens only; most families have none."""
    own = (family or family_of(transformer)).own_blocks(transformer)
    return tuple(Stage(kind, blocks) for kind, blocks in own.items())
