"""One trajectory and its passes, recognised by their inputs, which they do not keep alive.

A pipeline need not announce a new call (most never set a cache context), so a trajectory is recognised by its inputs:
every diffusers pipeline makes new ``img_ids`` and ``txt_ids`` for each call, and passes the same objects, or at least
one of them, at every step. What is kept dies with these tensors, so that neither a finished run nor one that was
stopped half-way leaves anything behind.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from h2gen.cache.memory import Memory
from h2gen.cache.policies.tolerance import CurvatureEstimate
from h2gen.cache.schedule import Schedule
from h2gen.cache.velocity import curvatures


@dataclass
class Pass:
    """One of the passes of true classifier-free guidance, or the only one, over all steps of a trajectory.

    ``index`` counts the passes of a step from 0, ``step`` the steps; ``timestep`` is the last step's, if known.
    ``since_full`` has the number of steps since the last full one for each picture of the batch.
    """

    context: str
    index: int
    new_memory: Callable[[int], Memory]
    step: int = 0
    timestep: float | None = None
    signature: tuple[Any, ...] = ()
    since_full: list[int] = field(default_factory=list)
    memory: Memory = field(init=False)

    def __post_init__(self) -> None:
        self.forget()

    def fit(self, signature: tuple[Any, ...], pictures: int) -> None:
        """Forget what was kept if the inputs are of another kind now."""
        if self.signature != signature:
            self.signature = signature
            if len(self.since_full) != pictures:
                self.since_full = [0] * pictures
            self.forget()

    def forget(self) -> None:
        """Drop the tensors, keep the counts."""
        self.memory = self.new_memory(len(self.since_full))


class Identity(NamedTuple):
    """The tensors that identify a trajectory and one of its passes, by being the same objects at every step."""

    text: torch.Tensor | None
    image_ids: torch.Tensor | None
    text_ids: torch.Tensor | None


class _Same:
    """Remembers which object a tensor is without keeping it alive (a mere ``id`` may be given out again)."""

    def __init__(self, tensor: torch.Tensor | None, when_gone: Callable[[Any], None] | None = None) -> None:
        self._ref = None if tensor is None else weakref.ref(tensor, when_gone)

    def __call__(self, tensor: torch.Tensor | None) -> bool:
        return tensor is not None and self._ref is not None and self._ref() is tensor

    @property
    def gone(self) -> bool:
        return self._ref is None or self._ref() is None


class Run:
    """One trajectory: the passes of its steps, and the tensors that it is recognised by.

    Args:
        index: counts trajectories from 0.
        schedule: of the pipeline's call; None if unknown.
        when_over: is called once the pipeline's call is over, that is, when none of its ids is alive any more.
        new_memory: makes what a pass keeps, for a number of pictures.
    """

    def __init__(
        self,
        index: int,
        schedule: Schedule | None,
        when_over: Callable[[Run], None],
        new_memory: Callable[[int], Memory],
    ) -> None:
        self.index, self.schedule = index, schedule
        self.estimates: dict[int, CurvatureEstimate] = {}
        """For each picture, from its last computed step (see ``Tolerance``)."""
        self.skipped: set[int] = set()
        """The pictures that skip the current step, in all of its passes."""
        self._when_over, self._new_memory = when_over, new_memory
        self._passes: list[tuple[str | None, _Same, _Same, Pass]] = []
        self._image = _Same(None)
        self._living: list[_Same] = []

    @property
    def steps_total(self) -> int | None:
        return None if self.schedule is None else len(self.schedule)

    @property
    def passes(self) -> list[Pass]:
        """The passes of a step; all are known from the second step on."""
        return [each for *_, each in self._passes]

    def passes_of(self, pictures: int) -> list[Pass]:
        """Those passes whose batch has this number of pictures."""
        return [each for each in self.passes if len(each.memory.velocities) == pictures]

    def pass_of(self, identity: Identity, name: str | None) -> Pass | None:
        """The pass that these inputs continue or begin; None if they belong to another trajectory.

        Named passes (``cache_context``) are told apart by their names, others by their text embeddings.
        """
        same_image = self._image(identity.image_ids)
        for known, text, text_ids, each in self._passes:
            if name == known and (name is not None or text(identity.text)):
                if not (same_image or text_ids(identity.text_ids)):
                    return None
                self._watch_image(identity.image_ids, same_image)
                return each
        if self._passes and not same_image:
            return None
        self._watch_image(identity.image_ids, same_image)
        index = len(self._passes)
        each = Pass(name or ("cond", "uncond", "third")[min(index, 2)], index, self._new_memory)
        text_ids = _Same(identity.text_ids, self._release)
        self._living.append(text_ids)
        self._passes.append((name, _Same(identity.text), text_ids, each))
        return each

    def take_curvatures(self, pictures: int) -> dict[int, float]:
        """For each picture, the largest curvature that its passes measured at the last computed step, if it is new.

        Waits for the device if there is anything to read, once. A curvature that is not finite counts as infinite.
        """
        measured = [velocities for each in self.passes_of(pictures) for velocities in each.memory.velocities]
        largest: dict[int, float] = {}
        for place, curvature in curvatures(measured).items():
            row, curvature = place % pictures, curvature if math.isfinite(curvature) else math.inf
            largest[row] = max(largest.get(row, curvature), curvature)
        return largest

    def _watch_image(self, image_ids: torch.Tensor | None, same: bool) -> None:
        # With reference images some pipelines make new image ids at each step.
        if not same:
            self._image = _Same(image_ids, self._release)
            self._living.append(self._image)

    def _release(self, _: Any) -> None:
        self._living = [same for same in self._living if not same.gone]
        if not self._living:
            for each in self.passes:
                each.forget()
            self._when_over(self)
