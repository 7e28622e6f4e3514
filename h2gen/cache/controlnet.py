"""A ControlNet runs only in steps that the cache computes: its samples are computed when they are first read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch

from h2gen.families.contract import SAMPLES


class LaterSamples(Sequence[torch.Tensor]):
    """Samples that are not computed yet.

    Args:
        compute: the ControlNet's whole output; computes it once.
        index: of these samples in the output.
    """

    def __init__(self, compute: Callable[[], Any], index: int) -> None:
        self._compute, self._index = compute, index

    def __len__(self) -> int:
        return len(self._compute()[self._index])

    def __getitem__(self, index: Any) -> Any:
        return self._compute()[self._index][index]


def postponed(net: Any) -> Callable[..., Any] | None:
    """What to call instead of a ControlNet's ``forward``, with that method and its arguments; None if it is unknown.

    A pipeline calls its ControlNets before each step of the transformer, and leaves the arguments as they are until
    the transformer has run.
    """
    first = net.nets[0] if isinstance(getattr(net, "nets", None), torch.nn.ModuleList) else net
    lists = [getattr(first, name, None) for name in ("controlnet_blocks", "controlnet_single_blocks")]
    if not all(isinstance(each, torch.nn.ModuleList) for each in lists):
        return None
    return partial(_later, [len(each) > 0 for each in lists])  # type: ignore[arg-type]


def _later(present: Sequence[bool], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("return_dict", True):
        return original(*args, **kwargs)
    compute = cache(lambda: original(*args, **kwargs))
    return tuple(LaterSamples(compute, index) if given else None for index, given in enumerate(present))


def computed(_transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A pre-hook of the transformer: the arguments with postponed samples computed; None if none are."""
    ready = {name: list(kwargs[name]) for name in SAMPLES if isinstance(kwargs.get(name), LaterSamples)}
    return (args, {**kwargs, **ready}) if ready else None


def without_samples(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward pass without samples, which are then not computed."""
    return {name: value for name, value in kwargs.items() if name not in SAMPLES}
