"""What one pass keeps from step to step: residuals and indicators of its two stages, and its output's velocities."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from h2gen.cache.agree import Ranks
from h2gen.cache.batch import Rows, replaced
from h2gen.cache.exact import Results
from h2gen.cache.forecast import ResidualHistory
from h2gen.cache.keep import Packed, PackedValues
from h2gen.cache.kept import KeptBytes
from h2gen.cache.pfs_parts import PartPooling, Weighted
from h2gen.cache.pfs_stable import Pooling
from h2gen.cache.picture_tokens import PictureTokens
from h2gen.cache.velocity import VelocityHistory


class StageMemory:
    """What one stage keeps from the steps that last computed it; pictures of a batch may differ in them.

    Args:
        order: of the forecast of residuals, 0 or 1.
        pictures: in the batch.
        how: residuals are kept; see ``CacheConfig``.
    """

    def __init__(self, order: int, pictures: int, how: str = "device") -> None:
        self.residuals = ResidualHistory(order, how)
        """Of the blocks after the first, one tensor per stream."""
        self.computed_at = [0] * pictures
        """The step that last computed each picture's residual."""
        self.indicator: torch.Tensor | None = None
        """The summary of the first block's residual, ``(B, ...)``."""
        self.spent = [0.0] * pictures
        """With a budget, each picture's changes added up since it was last computed."""

    def keep_residual(
        self,
        residual: Sequence[torch.Tensor],
        sigma: float,
        step: int,
        rows: Rows,
        own: torch.Tensor | None,
        ranks: Ranks | None = None,
    ) -> None:
        """Remember the residual that some pictures of the batch got at a step."""
        self.residuals.keep(tuple(residual), sigma, rows, own, ranks)
        for row in rows:
            self.computed_at[row] = step

    def keep_indicator(self, indicator: torch.Tensor, rows: Rows) -> None:
        """Remember the indicator of some pictures of the batch; the first time, of all."""
        self.indicator = indicator if self.indicator is None else replaced(self.indicator, (rows, indicator))


class Memory:
    """Everything that one pass of one trajectory keeps.

    Args:
        order: of the forecast of residuals, 0 or 1.
        measured: whether computed velocities are compared with what was predicted.
        how: residuals are kept; see ``CacheConfig``.
        pictures: in the batch.
    """

    def __init__(self, order: int, measured: bool, how: str = "device", pictures: int = 0) -> None:
        self.structure, self.detail = StageMemory(order, pictures, how), StageMemory(order, pictures, how)
        self.velocities = [VelocityHistory(measured) for _ in range(pictures)]
        """Of each picture; empty unless steps may be skipped."""
        self.poolings: dict[str, Pooling | PartPooling] = {}
        """Of each stage with stable pooling, which depends on the token grid; with context parallel, of each stage."""
        self.picture_tokens: PictureTokens | None = None
        """Their number, if changes are measured."""
        self.results = Results()
        """Of blocks whose result is the same at every step."""
        self.returned: dict[bool | None, Any] = {}
        """What the transformer returns, with an empty tensor as the velocity; by its argument ``return_dict``."""
        self.own: torch.Tensor | None = None
        """Which image tokens belong to the picture itself (see ``own_tokens``)."""

    def of(self, stage: str) -> StageMemory:
        return self.structure if stage == "structure" else self.detail

    def let_go(self) -> None:
        """Drop what was fetched from main memory and not needed."""
        self.structure.residuals.let_go()
        self.detail.residuals.let_go()

    @property
    def size(self) -> KeptBytes:
        """Of its tensors, of all pictures. Needs nothing from the device."""
        stages = self.structure, self.detail
        return KeptBytes(
            _bytes([[each.residuals for each in stages], self.results]),
            _bytes(self.velocities),
            _bytes([[each.indicator for each in stages], self.poolings, self.own]),
        )


def _bytes(value: Any) -> int:
    """Of the tensors in what this package keeps."""
    if value is None or isinstance(value, (bool, int, float, str)):  # most values are, and it runs at every step
        return 0
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Packed):
        return sum(each.nbytes for each in value.tensors)
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, (list, tuple, deque)):
        return sum(map(_bytes, value))
    return _bytes(vars(value)) if isinstance(value, _WITH_TENSORS) else 0


_WITH_TENSORS = ResidualHistory, PackedValues, VelocityHistory, Pooling, PartPooling, Weighted, Results
