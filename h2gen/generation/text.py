"""Cache encoded prompts, so that a prompt used with many seeds is encoded once."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from h2gen.errors import PromptWarning
from h2gen.families import family_of
from h2gen.generation.unread import Unread
from h2gen.settings.values import Settings

LARGEST = 2**26
"""Bytes of main memory: 16 prompts of FLUX.1 at 512 tokens. Enough, since all seeds of a prompt follow one another."""


Under = tuple[tuple[str, float], ...]
"""The adapters of the text encoder that a prompt was encoded under, each with its scale."""


class EncodedPrompts:
    """The last prompts of one pipeline, up to ``LARGEST`` bytes; the least recently used is dropped first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, Under], dict[str, torch.Tensor]] = OrderedDict()
        self._size = 0
        self._warned: set[Unread] = set()

    def warn(self, pipe: Any, settings: Settings) -> None:
        """Warn of what the pipeline does not read of a picture's prompts, once per text."""
        for each in unread(pipe, settings):
            if each not in self._warned:
                self._warned.add(each)
                warnings.warn(str(each), PromptWarning, stacklevel=4)

    def of(self, pipe: Any, prompt: str, max_sequence_length: int, under: Under = ()) -> dict[str, torch.Tensor]:
        """A prompt as arguments of the pipeline, such as ``prompt_embeds`` of shape ``(1, tokens, width)``.

        The values are those that the pipeline would have computed. Each call returns new tensors: if a prompt is its
        own negative, both passes of guidance must not get the same tensor, because the cache distinguishes passes by
        it. ``under`` is what changes the text encoder.
        """
        key = (prompt, max_sequence_length, under)
        device = pipe._execution_device
        if key in self._kept:
            self._kept.move_to_end(key)
            return {name: tensor.to(device).view_as(tensor) for name, tensor in self._kept[key].items()}
        with torch.no_grad(), _without_warnings(pipe):
            arguments = family_of(pipe.transformer).encode(pipe, prompt, max_sequence_length)
        kept = {name: tensor.to("cpu") for name, tensor in arguments.items()}
        self._kept[key] = kept
        self._size += _bytes(kept)
        while self._size > LARGEST and len(self._kept) > 1:
            self._size -= _bytes(self._kept.popitem(last=False)[1])
        return arguments

    def together(
        self, pipe: Any, prompts: Sequence[str], max_sequence_length: int, under: Under = ()
    ) -> dict[str, Any]:
        """As ``of``, with one row per prompt, as the pipeline takes them."""
        encoded = [self.of(pipe, prompt, max_sequence_length, under) for prompt in prompts]
        rows = encoded[0]
        if len(encoded) > 1:
            rows = {name: torch.cat([each[name] for each in encoded]) for name in rows}
        return family_of(pipe.transformer).text_arguments(rows)


def of_one_length(
    encoded: EncodedPrompts, pipe: Any, together: Sequence[Settings], under: Under = ()
) -> Sequence[Settings]:
    """The first of the pictures whose prompts fit into one batch: all, unless the model's texts differ in length."""
    if len(together) == 1 or family_of(pipe.transformer).pads_text:
        return together
    lengths = [
        {name: tensor.shape for name, tensor in encoded.of(pipe, each.prompt, each.max_sequence_length, under).items()}
        for each in together
    ]
    return together[: next((index for index, each in enumerate(lengths) if each != lengths[0]), len(together))]


def unread(pipe: Any, settings: Settings) -> tuple[Unread, ...]:
    """What the pipeline does not read of a picture's prompts."""
    limit, found = settings.max_sequence_length, []
    for name in ("prompt", "negative") if settings.cfg > 1 else ("prompt",):
        try:
            text, needed = family_of(pipe.transformer).unread(pipe, getattr(settings, name), limit)
        except Exception:  # noqa: BLE001 - a tokenizer of an unknown kind; a remark must not cost the picture
            continue
        if text:
            found.append(Unread(name, text, limit, needed))
    return tuple(found)


@contextmanager
def _without_warnings(pipe: Any) -> Iterator[None]:
    """Silence what diffusers and transformers log about long prompts: it is about CLIP, or counted from its limit."""
    names = {base.__module__ for base in type(pipe).__mro__} | {"transformers.tokenization_utils_base"}
    loggers = [logger for logger in map(logging.getLogger, names) if not logger.disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
