"""Exact reuse: the results of blocks that are the same at every step are kept from the first step that computes them.

Whether a result is still the same is told by what it was computed from, without looking at values or waiting for the
device: the same tensor objects, to which nothing has been written since (torch counts that), and the same other values.
What is not recognised is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from h2gen.cache.identity import Same


class Constants:
    """Values that a result was computed from. Tensors among them are not kept alive.

    Writes to a tensor that was made in inference mode are not counted, so it never counts as unchanged.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = [_Unwritten(value) if isinstance(value, torch.Tensor) else value for value in values]

    def same_as(self, other: Constants) -> bool:
        """Whether the values are those of ``other``, unchanged since."""
        return len(self._values) == len(other._values) and all(map(_alike, self._values, other._values))


class _Unwritten(Same):
    """A tensor as it is now."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor)
        self.writes = None if tensor.is_inference() else tensor._version

    def alike(self, other: Any) -> bool:
        known = isinstance(other, _Unwritten) and self.writes is not None and self.writes == other.writes
        return known and not self.gone and self._ref is not None and other(self._ref())


def _alike(one: Any, two: Any) -> bool:
    return one.alike(two) if isinstance(one, _Unwritten) else not isinstance(two, _Unwritten) and bool(one == two)


class Results:
    """What the blocks that see one kind of tokens returned in one pass, by kind."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Constants, torch.Tensor, _Unwritten]] = {}

    def known(self, constants: Mapping[str, Constants]) -> set[str]:
        """The kinds whose result is kept and was computed from these values."""
        return {
            kind
            for kind, (known, result, as_it_was) in self._kept.items()
            if kind in constants and constants[kind].same_as(known) and _Unwritten(result).alike(as_it_was)
        }

    def keep(self, kind: str, constants: Constants, result: torch.Tensor) -> None:
        """Remember a result, unless gradients should flow through it."""
        if not result.requires_grad:
            self._kept[kind] = constants, result, _Unwritten(result)

    def of(self, kind: str) -> torch.Tensor:
        """The result of a kind that is ``known``."""
        return self._kept[kind][1]
