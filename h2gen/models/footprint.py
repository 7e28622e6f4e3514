"""How much memory a model's weights need, by what ``--offload`` keeps on the device; computed, and loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_BLOCK = re.compile(r"\w+\.\d+\.")
"""The beginning of the name of a tensor in a block: group offloading splits the lists right inside a transformer."""


@dataclass(frozen=True)
class Part:
    """Sizes of one part of a model, such as a text encoder: all in parameters, or all in bytes.

    Args:
        name: such as ``transformer``, or its class.
        all: the whole part.
        block: what group offloading loads of it at a time, at most.
        layer: what sequential offloading loads of it at a time, at most.
    """

    name: str
    all: int
    block: int
    layer: int

    def times(self, factor: float) -> Part:
        """The part with all sizes multiplied: bytes, from parameters."""
        return Part(self.name, *(round(size * factor) for size in (self.all, self.block, self.layer)))


def measure(name: str, sizes: Mapping[str, int], *, in_blocks: bool) -> Part:
    """The sizes of a part.

    Args:
        name: of the part.
        sizes: of its tensors, by name.
        in_blocks: whether group offloading takes it block by block, as it does with transformers; it takes other parts
            layer by layer. Next to each block it keeps everything that is outside the blocks.
    """
    blocks: dict[str, int] = {}
    layers: dict[str, int] = {}
    for tensor, size in sizes.items():
        block = _BLOCK.match(tensor)
        layer = tensor.rpartition(".")[0]
        blocks[block[0] if block else ""] = blocks.get(block[0] if block else "", 0) + size
        layers[layer] = layers.get(layer, 0) + size
    largest = max(layers.values(), default=0)
    outside = blocks.pop("", 0)
    group = outside + max(blocks.values(), default=0) if in_blocks else largest
    return Part(name, sum(sizes.values()), group, largest)


def footprint(parts: Iterable[Part]) -> dict[str, int]:
    """The most that the weights take on the device at a time, for each way of ``--offload``; in the parts' unit."""
    parts = list(parts)
    return {
        "none": sum(part.all for part in parts),
        "model": max(part.all for part in parts),
        "group": max(part.block for part in parts),
        "sequential": max(part.layer for part in parts),
    }
