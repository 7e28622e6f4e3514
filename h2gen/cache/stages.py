"""Which blocks of which transformer are the structure stage and which the detail stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from torch import nn

from h2gen.errors import CacheError


@dataclass(frozen=True)
class Stage:
    """A run of blocks that is computed or reused as one.

    ``divisor`` is the paper's token count at which its PFS begins to pool.
    """

    name: Literal["structure", "detail"]
    blocks: Sequence[nn.Module]
    divisor: int


def stages_of(transformer: nn.Module) -> tuple[Stage, Stage]:
    """The structure and the detail stage of a FLUX.1 or FLUX.2 transformer.

    Raises:
        CacheError: it is another model, or one of its two block lists is empty.
    """
    if not isinstance(transformer, (FluxTransformer2DModel, Flux2Transformer2DModel)):
        raise CacheError(
            f"H2-Cache needs a FluxTransformer2DModel or a Flux2Transformer2DModel, not a {type(transformer).__name__}."
        )
    double, single = list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)
    if not double or not single:
        raise CacheError(
            f"H2-Cache needs double-stream and single-stream blocks; this {type(transformer).__name__} "
            f"has {len(double)} and {len(single)}."
        )
    return Stage("structure", double, 2048), Stage("detail", single, 384)
