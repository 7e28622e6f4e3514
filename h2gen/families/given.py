"""What a family reads of a forward pass, and what pictures are made from besides their prompts."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from PIL import Image


SAMPLES = ("controlnet_block_samples", "controlnet_single_block_samples")
"""The arguments of a forward pass that come from ControlNets: for double-stream and for single-stream blocks."""


@functools.cache
def argument_names(forward: Callable[..., Any]) -> Sequence[str]:
    """The names of a method's arguments, without self."""
    return list(inspect.signature(forward).parameters)[1:]


def named(names: Iterable[str], args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; ``names`` are those that it may be given by position."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


class PassInputs(NamedTuple):
    """What the cache reads of the arguments of a transformer's forward pass.

    Over one trajectory a pipeline passes ``text``, ``text_ids`` and mostly ``image_ids`` as the same objects at every
    step, and makes new ones for the next call. That is how a trajectory is recognised.
    """

    latents: torch.Tensor
    """B pictures: ``(B, N_img, C)``, or of any shape that begins with B if there is a ``grid``."""
    text: torch.Tensor
    """Embeddings, ``(B, N_txt, width)``. Without named contexts they distinguish the passes of true guidance."""
    timestep: torch.Tensor
    """``(B,)`` or a single one, from 1 (noise) to 0."""
    image_ids: torch.Tensor | None
    text_ids: torch.Tensor | None
    references: torch.Tensor | None = None
    """Tokens of reference pictures, ``(B, N_ref, C)``, of a model that takes them apart from the latents. In its
    streams they come after the image tokens."""
    grid: tuple[int, ...] | None = None
    """Rows and columns of the picture's tokens, after the frames of a video's, of a model that makes its tokens itself;
    None if the latents are tokens."""

    tokens: tuple[int, int] | None = None
    """N_img and N_txt in the streams, of a model that takes one text ``(tokens, width)`` per picture, of which ``text``
    is the first, and fills up both kinds of tokens."""

    shared: torch.Tensor | None = None
    """What all passes of a step get as the same object, if that is not ``latents``."""

    @property
    def image_tokens(self) -> int:
        """N_img."""
        if self.tokens is not None:
            return self.tokens[0]
        return int(self.latents.shape[1]) if self.grid is None else math.prod(self.grid)

    @property
    def text_tokens(self) -> int:
        """N_txt."""
        return int(self.text.shape[1]) if self.tokens is None else self.tokens[1]

    @property
    def texts(self) -> int:
        """The number of texts: one for each picture of the batch, or one for all."""
        return int((self.text if self.tokens is None else self.latents).shape[0])


class PictureInputs(NamedTuple):
    """What the pictures of a batch are made from besides their prompts.

    Args:
        size: width and height, in pixels; a multiple of what the model needs.
        pictures: in RGB; for the task ``edit`` of any size, otherwise of ``size``. A second one is a reference.
        mask: in L, of ``size``, 255 where the picture changes.
        strength: how much of the schedule runs, above 0 up to 1; None if the task has none.
        together: pictures in the batch.
        frames: of a video; 0 for a picture.
    """

    size: tuple[int, int]
    pictures: Sequence[Image.Image] = ()
    mask: Image.Image | None = None
    strength: float | None = None
    together: int = 1
    frames: int = 0
