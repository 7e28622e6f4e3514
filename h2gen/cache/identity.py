"""The tensors that a forward pass is recognised by."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Identity(NamedTuple):
    """The tensors that identify a trajectory and one of its passes, by being the same objects at every step; and the
    latents, which differ from step to step."""

    text: torch.Tensor | None
    image_ids: torch.Tensor | None
    text_ids: torch.Tensor | None
    latents: torch.Tensor | None


class Same:
    """Remembers which object a tensor is without keeping it alive (a mere ``id`` may be given out again)."""

    def __init__(self, tensor: torch.Tensor | None, when_gone: Callable[[Any], None] | None = None) -> None:
        self._ref = None if tensor is None else weakref.ref(tensor, when_gone)

    def __call__(self, tensor: torch.Tensor | None) -> bool:
        return tensor is not None and self._ref is not None and self._ref() is tensor

    @property
    def gone(self) -> bool:
        return self._ref is None or self._ref() is None
