"""How many of the image tokens are the picture's own: changes are measured on these and not on reference pictures."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from h2gen.families.token_grid import is_own


class PictureTokens:
    """The number of a picture's own tokens, which come before those of its reference pictures.

    The ids are copied when a pass begins and read once the first block is queued. The host then waits for the copy
    alone, and the device always has something to do.

    Args:
        image_ids: ``(N, axes)`` or ``(B, N, axes)``.
        image_tokens: N; if there are no ids of that number, all tokens are the picture's own.
    """

    def __init__(self, image_ids: torch.Tensor | None, image_tokens: int) -> None:
        self._tokens = image_tokens
        self._copied: Any = None
        ids = image_ids[0] if image_ids is not None and image_ids.ndim == 3 else image_ids
        self._numbers = None
        if ids is not None and ids.shape[0] == image_tokens > 0:
            queued = ids.device.type == "cuda"
            self._numbers = ids[:, 0].detach().to("cpu", non_blocking=queued)
            if queued:
                stream: Any = torch.cuda.current_stream(ids.device)
                self._copied = stream.record_event()

    @cached_property
    def count(self) -> int:
        """Waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tokens if self._numbers is None else int(is_own(self._numbers).sum())
