"""What the cache keeps, and for how long: one trajectory, and each of its branches apart.

A pipeline need not announce a new call (most never set a cache context), so a trajectory is recognised by its
inputs: every pipeline of diffusers makes ``img_ids`` and ``txt_ids`` anew for each call and passes the same objects,
or at least one of them, at every step. The state dies with these tensors, so that neither a finished run nor one that
was stopped half-way leaves anything behind.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from h2gen.cache.forecast import History
from h2gen.cache.layout import Pooling
from h2gen.cache.schedule import Schedule
from h2gen.cache.stages import Stage
from h2gen.cache.tolerance import Bend
from h2gen.cache.velocity import Velocities


class Kept:
    """What one stage keeps from the steps that computed it last, which need not be the same for all pictures.

    ``residuals`` are those of the blocks after its first, one tensor a stream, each picture's last computed at its one
    of ``steps``; ``indicator`` is the summary of the first block's residual, and ``spent`` the changes of each picture
    that were added up before it.
    """

    def __init__(self, order: int, pictures: int) -> None:
        self.residuals = History(order)
        self.steps = [0] * pictures
        self.indicator: torch.Tensor | None = None
        self.spent = [0.0] * pictures


@dataclass
class Branch:
    """One of the passes of true classifier-free guidance, or the only one.

    ``turn`` counts the passes of a step from 0, ``order`` is that in which residuals are forecast. ``since_full`` is of
    each picture of the batch, and so are ``velocities``, outputs of the transformer, where steps may be skipped;
    ``measured`` says whether they are compared with what was expected. ``poolings`` are those of the stages, where they
    do not depend on the number of tokens alone.
    """

    context: str
    turn: int = 0
    order: int = 0
    measured: bool = False
    step: int = 0
    timestep: float | None = None
    signature: tuple[Any, ...] = ()
    since_full: list[int] = field(default_factory=list)
    structure: Kept = field(init=False)
    detail: Kept = field(init=False)
    velocities: list[Velocities] = field(init=False)
    poolings: dict[str, Pooling] = field(init=False)

    def __post_init__(self) -> None:
        self.forget()

    def kept(self, stage: Stage) -> Kept:
        return self.structure if stage.name == "structure" else self.detail

    def fit(self, signature: tuple[Any, ...], pictures: int) -> None:
        """Forget what was kept of inputs of another kind."""
        if self.signature != signature:
            self.signature = signature
            if len(self.since_full) != pictures:
                self.since_full = [0] * pictures
            self.forget()

    def forget(self) -> None:
        """Drop the tensors, keep the counts."""
        self.structure, self.detail = (Kept(self.order, len(self.since_full)) for _ in range(2))
        self.velocities = [Velocities(self.measured) for _ in self.since_full]
        self.poolings = {}


class _Same:
    """Remembers a tensor's identity without keeping it alive (an ``id`` alone may be given out again)."""

    def __init__(self, tensor: torch.Tensor | None, when_gone: Callable[[Any], None] | None = None) -> None:
        self._ref = None if tensor is None else weakref.ref(tensor, when_gone)

    def __call__(self, tensor: torch.Tensor | None) -> bool:
        return tensor is not None and self._ref is not None and self._ref() is tensor

    @property
    def gone(self) -> bool:
        return self._ref is None or self._ref() is None


class Ids(NamedTuple):
    """The tensors that tell one trajectory, and one of its branches, from another, by being the same objects."""

    encoder_hidden_states: torch.Tensor | None
    img_ids: torch.Tensor | None
    txt_ids: torch.Tensor | None


class Run:
    """One trajectory: its branches, and the tensors that it is recognised by, none of which it keeps alive.

    ``when_over`` is called when its pipeline call is over: none of its ids is alive any more.
    ``order`` and ``measured`` are its branches'. ``bends`` are what each picture's last computed step says of
    the way ahead, and ``skipped`` the pictures whose step is skipped.
    """

    def __init__(
        self, index: int, schedule: Schedule | None, when_over: Callable[[Run], None], order: int, measured: bool
    ) -> None:
        self.index = index
        self._order, self._measured = order, measured
        self.schedule = schedule
        self.bends: dict[int, Bend] = {}
        self.skipped: set[int] = set()
        self._when_over = when_over
        self._branches: list[tuple[str | None, _Same, _Same, Branch]] = []
        self._img = _Same(None)
        self._living: list[_Same] = []

    @property
    def steps_total(self) -> int | None:
        return None if self.schedule is None else len(self.schedule)

    @property
    def branches(self) -> list[Branch]:
        """Those of all passes of a step; all are known from its second step on."""
        return [branch for *_, branch in self._branches]

    def branch(self, ids: Ids, name: str | None) -> Branch | None:
        """The branch that these inputs continue or begin; None when they belong to another trajectory.

        Named branches (``cache_context``) are told apart by their names, others by their text embeddings.
        """
        same_img = self._img(ids.img_ids)
        for known, encoder, txt, branch in self._branches:
            if name == known and (name is not None or encoder(ids.encoder_hidden_states)):
                if not (same_img or txt(ids.txt_ids)):
                    return None
                self._watch_img(ids.img_ids, same_img)
                return branch
        if self._branches and not same_img:
            return None
        self._watch_img(ids.img_ids, same_img)
        turn = len(self._branches)
        branch = Branch(name or ("cond", "uncond", "third")[min(turn, 2)], turn, self._order, self._measured)
        text = _Same(ids.txt_ids, self._release)
        self._living.append(text)
        self._branches.append((name, _Same(ids.encoder_hidden_states), text, branch))
        return branch

    def _watch_img(self, img_ids: torch.Tensor | None, same: bool) -> None:
        # With reference images FLUX.2's pipelines make img_ids anew at each step.
        if not same:
            self._img = _Same(img_ids, self._release)
            self._living.append(self._img)

    def _release(self, _: Any) -> None:
        self._living = [same for same in self._living if not same.gone]
        if not self._living:
            for *_keys, branch in self._branches:
                branch.forget()
            self._when_over(self)
