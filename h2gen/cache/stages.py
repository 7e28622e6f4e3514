"""The two stages of a transformer, structure and detail, and the blocks of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from h2gen.errors import CacheError
from h2gen.families import family_of


@dataclass(frozen=True)
class Stage:
    """A sequence of blocks that is computed or reused as a whole.

    ``divisor`` is the number of tokens at which the paper's PFS begins to pool.
    """

    name: Literal["structure", "detail"]
    blocks: Sequence[nn.Module]
    divisor: int


def stages_of(transformer: nn.Module) -> tuple[Stage, Stage]:
    """The structure stage and the detail stage of a transformer.

    Raises:
        CacheError: it belongs to no known family, or has no blocks of one kind.
    """
    structure, detail = family_of(transformer).block_lists(transformer)
    if not structure or not detail:
        raise CacheError(
            f"H2-Cache needs blocks in both stages; this {type(transformer).__name__} has {len(structure)} for the "
            f"structure and {len(detail)} for the detail."
        )
    return Stage("structure", structure, 2048), Stage("detail", detail, 384)
