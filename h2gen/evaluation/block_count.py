"""Counts how many blocks of a transformer actually ran, whatever cache is on it.

Hooks on layers deep inside the blocks see which blocks ran, so other caches are counted without relying on what they
report. H2-Cache's own totals, which a comparison takes from its trace, are tested against this count.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass
class BlockCount:
    """Blocks that ran, and blocks that would have run without a cache, since counting began.

    A block counts in two halves, one for its attention and one for its feed-forward layers, because some caches
    (TaylorSeer by default) reuse only its attention. That is close to their true cost: at 1024x1024 attention is 47 %
    of the multiply-adds of a FLUX.1 double-stream block and 40 % of a single-stream block. A single-stream block of
    FLUX.2 has both in one layer and counts as a whole. A block that sees only a part of the tokens counts as that part.
    """

    run: float = 0.0
    total: float = 0

    @property
    def share(self) -> float:
        """Share of the blocks that ran; 1 before anything ran."""
        return self.run / self.total if self.total else 1.0


@contextmanager
def count_blocks(transformer: nn.Module) -> Iterator[BlockCount]:
    """Count within a ``with`` block, over any number of images; caches may come and go inside it.

    Args:
        transformer: of any of the families.

    Raises:
        CacheError: the model belongs to none of them.

    >>> with count_blocks(pipe.transformer) as count:  # doctest: +SKIP
    ...     image = pipe("a cat").images[0]
    >>> count.run, count.total  # doctest: +SKIP
    """
    from h2gen.cache.inputs import parts_of
    from h2gen.cache.stages import own_stages_of, stages_of
    from h2gen.families import family_of
    from h2gen.families.given import named

    own = own_stages_of(transformer)
    blocks = [(block, stage) for stage in (*stages_of(transformer), *own) for block in stage.blocks]
    names = list(inspect.signature(transformer.forward).parameters)
    count = BlockCount()
    parts: dict[str, float] = {}

    def passed(_module: nn.Module, args: Any, kwargs: Any) -> None:
        if own:
            parts.update(parts_of(family_of(transformer).pass_inputs(named(names, args, kwargs))))
        count.total += sum(parts.get(stage.name, 1) for _, stage in blocks)

    def ran(kind: str, part: float) -> Any:
        def hook(*_: Any) -> None:
            count.run += part * parts.get(kind, 1)

        return hook

    handles = [transformer.register_forward_pre_hook(passed, with_kwargs=True)]
    try:
        for block, stage in blocks:
            layers = _witnesses(block)
            handles += [layer.register_forward_pre_hook(ran(stage.name, 1 / len(layers))) for layer in layers]
        yield count
    finally:
        for handle in handles:
            handle.remove()


def _witnesses(block: Any) -> list[nn.Module]:
    """Layers called exactly once when their half of the block runs, too deep for any cache to replace.

    Caches replace the forward pass of blocks, attention and feed-forward modules; quantization, LoRA and fused
    projections replace linear layers. What remains is the attention's query norm and the activation.
    """
    feed_forward = getattr(block, "ff", getattr(block, "ffn", None))
    if feed_forward is None:
        activation = getattr(block, "act_mlp", None)
    else:
        activation = getattr(feed_forward, "act_fn", None)
        activation = feed_forward.net[0] if activation is None else activation
    attention = next(getattr(block, name) for name in ("attn", "attention", "attn1") if hasattr(block, name))
    return [attention.norm_q, *([] if activation is None else [activation])]
