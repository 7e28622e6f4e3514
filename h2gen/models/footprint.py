"""How much memory a model needs on the device, by what ``--offload`` keeps there; computed, and loads no torch.

Weights are exact. What a forward pass holds besides them was counted on torch's meta device, for attention that does
not keep its scores, as on any recent GPU; nothing of it has been measured on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from h2gen.cache.most_kept import vector_bytes
from h2gen.families import FAMILIES

_BLOCK = re.compile(r"\w+\.\d+\.")
"""The beginning of the name of a tensor in a block: group offloading splits the lists right inside a transformer."""

TILE = 1024 * 1024
"""Pixels that an autoencoder decodes at a time, if it decodes in tiles."""
TILED_ABOVE = 1536 * 1536
"""Pixels. A larger picture is decoded in tiles, since its activations in the decoder outgrow the weights."""
_DECODING = {
    "AutoencoderTiny": 2,
    "AutoencoderKLQwenImage": 18,
    "AutoencoderKLHunyuanVideo": 9.1,
    "AutoencoderKLWan": 3.2,
}
DECODING = 6
"""Values that decoding holds at most, per pixel and channel of the autoencoder's widest picture; above, for some."""
WIDTH, CHANNELS = 3072, 128
"""Those of FLUX.1, for parts whose width is not known."""
ENCODING = 300_000_000
"""Bytes that encoding a prompt holds: the hidden states of a large encoder's layers."""
MARGIN, RESERVE = 1.25, 200_000_000
"""What is added to computed needs, because memory is allocated in pieces: a factor for all but the weights, which are
known exactly, and bytes."""


@dataclass(frozen=True)
class Part:
    """Sizes of one part of a model, such as a text encoder: all in parameters, or all in bytes.

    Args:
        name: of its class.
        all: the whole part.
        block: what group offloading loads of it at a time, at most.
        layer: what sequential offloading loads of it at a time, at most.
        next: a further block, which group offloading fetches while one runs; 0 without blocks.
        width: channels, and not in the sizes' unit: of a transformer's streams, or of the picture as an autoencoder
            decodes it; 0 for text encoders.
    """

    name: str
    all: int
    block: int
    layer: int
    next: int = 0
    width: int = 0

    def times(self, factor: float) -> Part:
        """The part with all sizes multiplied: bytes, from parameters."""
        all, block, layer, next = (round(size * factor) for size in (self.all, self.block, self.layer, self.next))
        return replace(self, all=all, block=block, layer=layer, next=next)

    @property
    def encodes(self) -> bool:
        """Whether it encodes text."""
        return not (self.is_transformer or self.is_autoencoder)

    @property
    def is_transformer(self) -> bool:
        return self.name in FAMILIES

    @property
    def is_autoencoder(self) -> bool:
        return self.name.startswith("Autoencoder")


@dataclass(frozen=True)
class Work:
    """What is made at once: the numbers that memory depends on.

    Args:
        pixels: of a picture.
        pictures: in a batch.
        tokens: of one picture's text and image, with reference pictures.
        kept_tokens: vectors of the streams' width that the cache keeps per picture.
        kept_values: other values that it keeps, in the model's dtype.
        value: bytes of a value in the model's dtype.
        tiled: whether a picture is decoded in tiles.
        beside: further weights that are on the device unless parts are fetched piece by piece, as of ControlNets.
        encoding: weights that are on the device only while a prompt is encoded, as of Redux.
        always: weights that are on the device all the time, as of an autoencoder for previews.
        cache_memory: how the cache keeps vectors; see ``CacheConfig``.
        host_tokens: vectors of the streams' width that it keeps per picture in main memory.
    """

    pixels: int
    pictures: int
    tokens: int
    kept_tokens: int = 0
    kept_values: int = 0
    value: int = 2
    tiled: bool = False
    beside: int = 0
    encoding: int = 0
    always: int = 0
    cache_memory: str = "device"
    host_tokens: int = 0

    def kept(self, width: int) -> int:
        """Bytes that the cache keeps until the pictures are decoded, for streams of this width."""
        vectors = self.kept_tokens * vector_bytes(self.cache_memory, width or WIDTH, self.value)
        return self.pictures * (vectors + self.kept_values * self.value)

    def kept_in_main_memory(self, width: int) -> int:
        """Bytes that the cache keeps in main memory, for streams of this width."""
        return self.pictures * self.host_tokens * (width or WIDTH) * self.value

    def held_by(self, part: Part) -> int:
        """Bytes that a transformer or an autoencoder holds besides its weights while it runs."""
        if part.is_transformer:
            values = self.tokens * (part.width or WIDTH) * FAMILIES[part.name].held_per_token
            return round(self.pictures * self.value * values)
        at_once = min(self.pixels, TILE) if self.tiled or self.pixels > TILED_ABOVE else self.pixels
        decoded = self.pictures * self.pixels * 3 * 4  # one by one, but all are returned together, as floats
        values = at_once * (part.width or CHANNELS) * _DECODING.get(part.name, DECODING)
        return decoded + round(self.value * values)


MEGAPIXEL = Work(1024 * 1024, 1, 4096 + 512)
"""One picture of FLUX.1's own size, if the caller does not say what will be made."""


def width_of(config: Mapping[str, Any]) -> int:
    """The width of a part, from its configuration; 0 if that does not say it, as those of text encoders."""
    heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
    channels = config.get("decoder_block_out_channels") or config.get("block_out_channels")
    if isinstance(heads, int) and isinstance(size, int):
        return heads * size
    own = config.get("dim", config.get("base_dim"))  # of Z-Image's transformer and Qwen-Image's autoencoder
    if isinstance(own, int):
        return own
    return int(channels[0]) if isinstance(channels, (list, tuple)) and channels else 0


def measure(name: str, sizes: Mapping[str, int], *, in_blocks: bool, width: int = 0) -> Part:
    """The sizes of a part.

    Args:
        name: of the part.
        sizes: of its tensors, by name.
        in_blocks: whether group offloading takes it block by block, as it does with transformers; it takes other parts
            layer by layer. Next to each block it keeps everything that is outside the blocks.
        width: see ``Part``.
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
    one = max(blocks.values(), default=0) if in_blocks else 0
    return Part(name, sum(sizes.values()), outside + one if in_blocks else largest, largest, one, width)


def footprint(parts: Iterable[Part], work: Work | None = None) -> dict[str, int]:
    """The most memory that the device needs at a time, for each way of ``--offload``, the fastest first.

    Args:
        parts: of the model; in bytes, if there is ``work``.
        work: what is made; without it, only the weights count, in the parts' unit.
    """
    parts = list(parts)
    return {way: max(_stages(way, parts, work)) for way in ("none", "text", "model", "group", "sequential")}


def _stages(way: str, parts: list[Part], work: Work | None) -> Iterator[int]:
    """What the device holds while each part runs."""
    size = {"group": "block", "sequential": "layer"}.get(way, "all")
    kept = 0 if work is None else work.kept(next((part.width for part in parts if part.is_transformer), 0))
    for running in parts:
        if way == "none":
            held = sum(part.all for part in parts)
        elif way == "text":  # the transformer and the autoencoder stay, but for a transformer in the way of an encoder
            stay = [part for part in parts if part.is_autoencoder or (part.is_transformer and not running.encodes)]
            held = sum(part.all for part in stay) + (running.all if running.encodes else 0)
        elif way == "group":  # while a block runs the next one comes, and the one before may not be gone yet
            held = min(running.all, running.block + 2 * running.next)
        else:
            held = getattr(running, size)
        if work is None:
            yield held
        else:
            beside = work.always + (work.encoding if running.encodes else 0) + (work.beside if size == "all" else 0)
            besides = ENCODING if running.encodes else kept + work.held_by(running)
            yield round(held + work.value * beside + MARGIN * besides) + RESERVE
