"""One trajectory and its passes, recognised by their inputs, which they do not keep alive.

A pipeline need not announce a new call (most never set a cache context), so a trajectory is recognised by its inputs:
every diffusers pipeline makes new ``img_ids`` and ``txt_ids`` for each call, and passes the same objects, or at least
one of them, at every step. What is kept dies with these tensors, so that neither a finished run nor one that was
stopped half-way leaves anything behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from h2gen.cache.agree import Ranks
from h2gen.cache.identity import Identity, Same
from h2gen.cache.kept import KeptBytes
from h2gen.cache.memory import Memory
from h2gen.cache.passes import CONTEXTS, Pass
from h2gen.cache.policies.tolerance import ErrorEstimate
from h2gen.cache.schedule import Course, Schedule
from h2gen.cache.velocity import error_rates


class Run:
    """One trajectory: the passes of its steps, and the tensors that it is recognised by.

    Args:
        index: counts trajectories from 0.
        course: of the call that runs the transformer; None if unknown.
        timestep: of its first step, 0 to 1000; a tensor if only the device knows it.
        when_over: is called once the pipeline's call is over, that is, when none of its ids is alive any more.
        new_memory: makes what a pass keeps, for a number of pictures.
    """

    def __init__(
        self,
        index: int,
        course: Course | None,
        timestep: float | torch.Tensor,
        when_over: Callable[[Run], None],
        new_memory: Callable[[int], Memory],
    ) -> None:
        self.index, self.course = index, course
        self.step = 0
        self.timestep: float | torch.Tensor = timestep
        self.before: float | torch.Tensor | None = None
        """Of the current step and of the one before it, as the model was given them."""
        self.repeats = False
        """Whether a step has been seen to run the same text twice with different latents."""
        self.ranks: Ranks | None = None
        """The processes that make the pictures together, if they do."""
        self.estimates: dict[int, ErrorEstimate] = {}
        """The estimated error of each picture since its last computed step (see ``Tolerance``)."""
        self.skipped: set[int] = set()
        """The pictures that skip the current step, in all of its passes."""
        self._when_over, self._new_memory = when_over, new_memory
        self._passes: list[tuple[str | None, Same, Same, Pass]] = []
        self._image = self._latents = Same(None)
        self._living: list[Same] = []

    @property
    def schedule(self) -> Schedule | None:
        return None if self.course is None else self.course.schedule

    @property
    def steps_total(self) -> int | None:
        return None if self.schedule is None else len(self.schedule)

    @property
    def passes(self) -> list[Pass]:
        """The passes of a step; all are known from the second step on. Guidance may end before the last step."""
        return [each for *_, each in self._passes if each.step >= self.step - 1]

    def passes_of(self, pictures: int) -> list[Pass]:
        """Those passes whose batch has this number of pictures."""
        return [each for each in self.passes if len(each.memory.velocities) == pictures * each.together]

    def passes_with(self, identity: Identity, name: str | None) -> list[Pass] | None:
        """The passes that have had these inputs, in order; None if the inputs belong to another trajectory.

        Named passes (``cache_context``) are told apart by their names, others by their text embeddings.
        """
        # Where there are no image ids, a pass with a new name or text is recognised by the latents of the pass before.
        same_image, found = self._image(identity.image_ids), []
        same_step = identity.image_ids is None and self.same_latents(identity)
        for known, text, text_ids, each in self._passes:
            if name == known and (name is not None or text(identity.text)):
                if not (same_image or text_ids(identity.text_ids)):
                    return None
                found.append(each)
        return found if found or same_image or same_step or not self._passes else None

    @property
    def lost_text(self) -> bool:
        """Whether the text of an unnamed pass is gone, although the run goes on."""
        return any(name is None and text.gone for name, text, *_ in self._passes)

    def same_latents(self, identity: Identity) -> bool:
        """Whether the last pass had the same latents object."""
        return self._latents(identity.latents)

    def enter(self, identity: Identity, name: str | None, found: Sequence[Pass], step: int) -> Pass:
        """Begin a pass of a step: the first of those found that has not run in it, or, if all have, a new one.

        A text that a step runs twice goes through changed blocks the second time (skipped layers, perturbed attention),
        so these passes share nothing.
        """
        self.step, self._latents = step, Same(identity.latents)
        if not self._image(identity.image_ids):  # with reference images some pipelines make new ids at each step
            self._image = self._watched(identity.image_ids)
        each = next((each for each in found if each.step < step), None)
        if each is None:
            each = new = Pass(self._context(name, found), len(self._passes), self._new_memory)
            # Without its text an unnamed pass is never found again.
            text = Same(identity.text, None if name is not None else lambda _: new.forget())
            self._passes.append((name, text, self._watched(identity.text_ids), each))
        elif each.step < step - 1:  # what it kept is too old
            each.forget()
        each.step = step
        return each

    def _context(self, name: str | None, found: Sequence[Pass]) -> str:
        if found:
            return f"{found[0].context} {len(found) + 1}"
        texts = sum(
            " " not in each.context and (each.step == self.step or not text.gone) for _, text, _, each in self._passes
        )
        return name or CONTEXTS[min(texts, 2)]

    def take_error_rates(self, pictures: int) -> dict[int, float]:
        """For each picture, the largest error rate of its passes at the last computed step, if not taken before.

        Waits for the device if there is anything to read, once. A rate that is not finite counts as infinite.
        """
        measured = [velocities for each in self.passes_of(pictures) for velocities in each.memory.velocities]
        largest: dict[int, float] = {}
        for place, rate in error_rates(measured, self.ranks).items():
            row, rate = place % pictures, rate if math.isfinite(rate) else math.inf
            largest[row] = max(largest.get(row, rate), rate)
        return largest

    @property
    def kept(self) -> KeptBytes:
        """The size of what its passes keep of one picture."""
        sizes = (each.memory.size.of_one(each.pictures) for *_, each in self._passes)
        return sum(sizes, start=KeptBytes())

    def _watched(self, tensor: torch.Tensor | None) -> Same:
        same = Same(tensor, self._release)
        if tensor is not None:
            self._living.append(same)
        return same

    def _release(self, _: Any) -> None:
        self._living = [same for same in self._living if not same.gone]
        if not self._living:
            self.forget()
            self._when_over(self)

    def forget(self) -> None:
        """Drop the tensors that its passes keep now; a run itself may live until the next garbage collection."""
        for *_, each in self._passes:
            each.forget()
