"""What the tensor names of a single file say about the transformer inside, in diffusers' naming or the original one."""

from __future__ import annotations

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"(single_)?(?:transformer_)?blocks\.(\d+)\.|double_blocks\.(\d+)\.")


def block_counts(names: Iterable[str]) -> tuple[int, int]:
    """The numbers of double-stream and single-stream blocks."""
    double: set[str] = set()
    single: set[str] = set()
    for name in names:
        block = _BLOCK.search(name)
        if block is not None:
            (single if block[1] else double).add(block[2] or block[3])
    return len(double), len(single)


def takes_guidance(names: Iterable[str]) -> bool:
    """Whether the transformer was distilled to take a guidance scale."""
    return any("guidance_in." in name or "guidance_embedder." in name for name in names)


def is_lora(names: Iterable[str]) -> bool:
    """Whether the file holds a LoRA instead of a whole transformer."""
    return any("lora_" in name or ".lora" in name for name in names)
