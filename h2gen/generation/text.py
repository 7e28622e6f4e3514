"""Cache encoded prompts, so that a prompt used with many seeds is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from h2gen.families import family_of

LARGEST = 2**26
"""Bytes of main memory: 16 prompts of FLUX.1 at 512 tokens. Enough, since all seeds of a prompt follow one another."""


class EncodedPrompts:
    """The last prompts of one pipeline, up to ``LARGEST`` bytes; the least recently used is dropped first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], dict[str, torch.Tensor]] = OrderedDict()
        self._size = 0

    def of(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        """A prompt as arguments of the pipeline, such as ``prompt_embeds`` of shape ``(1, tokens, width)``.

        The values are those that the pipeline would have computed. Each call returns new tensors: if a prompt is its
        own negative, both passes of guidance must not get the same tensor, because the cache distinguishes passes by
        it.
        """
        key = (prompt, max_sequence_length)
        device = pipe._execution_device
        if key in self._kept:
            self._kept.move_to_end(key)
            return {name: tensor.to(device).view_as(tensor) for name, tensor in self._kept[key].items()}
        with torch.no_grad():
            arguments = family_of(pipe.transformer).encode(pipe, prompt, max_sequence_length)
        kept = {name: tensor.to("cpu") for name, tensor in arguments.items()}
        self._kept[key] = kept
        self._size += _bytes(kept)
        while self._size > LARGEST and len(self._kept) > 1:
            self._size -= _bytes(self._kept.popitem(last=False)[1])
        return arguments

    def clear(self) -> None:
        self._kept.clear()
        self._size = 0


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
