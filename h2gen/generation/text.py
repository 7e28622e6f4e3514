"""Prompts as the text encoders left them, so that a prompt painted with many seeds is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

LARGEST = 2**26
"""Bytes kept in main memory: 16 prompts of FLUX.1 at 512 tokens. A prompt's seeds follow one another."""


class EncodedPrompts:
    """The last prompts of one pipeline, up to ``LARGEST`` bytes of them; the one not used for longest goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], dict[str, torch.Tensor]] = OrderedDict()
        self._size = 0

    def of(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        """A prompt as arguments of the pipeline: ``prompt_embeds`` of shape (1, tokens, width), and for FLUX.1
        ``pooled_prompt_embeds`` of shape (1, width). Their values are those that the pipeline would have computed."""
        key = (prompt, max_sequence_length)
        device = pipe._execution_device
        if key in self._kept:
            self._kept.move_to_end(key)
            return {name: tensor.to(device) for name, tensor in self._kept[key].items()}
        with torch.no_grad():
            encoded = pipe.encode_prompt(
                prompt=[prompt],
                device=device,
                max_sequence_length=max_sequence_length,
                **({"prompt_2": None} if hasattr(pipe, "tokenizer_2") else {}),
            )
        # FLUX.1 returns embeddings, pooled ones and positions, FLUX.2 embeddings and positions.
        names = ("prompt_embeds", "pooled_prompt_embeds") if len(encoded) == 3 else ("prompt_embeds",)
        arguments = dict(zip(names, encoded, strict=False))
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
