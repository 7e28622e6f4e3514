"""Records an uncached run: inner products between steps of the velocity and of each stage's residual.

While an image is made its tensors are held in host memory in the model's dtype (about 50 MB per step for FLUX.1 at
1024x1024, and no more for larger pictures and videos). Only a few steps-by-steps matrices are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from h2gen.cache.stages import stages_of
from h2gen.errors import RunError
from h2gen.evaluation.tune.forecast_errors import Matrix, SolverPasses
from h2gen.families import family_of
from h2gen.families.given import argument_names, named

_TOKENS = 4096
"""The number of tokens that are kept of what the blocks add, at most: as many as a picture of 1024x1024 has. All tokens
of a video of 50 steps would take tens of gigabytes, and inner products over some of them are as good."""
_CHUNK = 1 << 22
"""Values, over all steps together, that are multiplied at once in float64."""


@dataclass(frozen=True)
class RecordedRun:
    """The recorded steps of one image.

    With true guidance everything is about the guided tensors, ``u + scale * (c - u)`` of the two passes: a forecast
    that is linear in both passes is the same forecast of the guided tensor.

    Args:
        passes: sigmas and intervals of the n passes.
        velocity: ``(n, n)`` inner products of the velocity.
        reused: ``(n, n)``, of what the blocks after the first of both stages add to the image tokens.
        detail: ``(n, n)``, of what those of the detail stage add.
        gains: ``(n,)``, change of the velocity per change of what the blocks add, measured at each step along the
            change since the step before, through the model's last layers. An estimate, used for R and D only.
    """

    passes: SolverPasses
    velocity: Matrix
    reused: Matrix
    detail: Matrix
    gains: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "sigmas": list(self.passes.sigmas),
            "intervals": list(self.passes.intervals),
            "gains": list(self.gains),
            **{name: getattr(self, name).tolist() for name in ("velocity", "reused", "detail")},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> RecordedRun:
        gram = {name: np.asarray(data[name], np.float64) for name in ("velocity", "reused", "detail")}
        return RecordedRun(
            SolverPasses(tuple(data["sigmas"]), tuple(data["intervals"])), **gram, gains=tuple(data["gains"])
        )


class Recording:
    """Hooks that collect the passes of one image. ``finish`` turns them into matrices.

    Both passes of true guidance may be one forward pass with a row for each.
    """

    def __init__(self, transformer: Any, passes: int, scale: float) -> None:
        self._family, self._passes, self._scale = family_of(transformer), passes, scale
        self._names = argument_names(type(transformer).forward)
        self._project = self._family.head(transformer)[1]
        self._tensors: dict[str, list[list[torch.Tensor]]] = {"velocity": [], "reused": [], "detail": []}
        self._gains: list[list[float]] = []
        self._first: dict[str, torch.Tensor] = {}
        self._added: dict[str, torch.Tensor] = {}
        self._last: list[torch.Tensor | None] = [None] * passes
        self._count = 0
        self._tokens = 0
        self._some: torch.Tensor | None = None
        """The tokens that are kept if there are more than ``_TOKENS``."""
        self._probing = False

    # Called by hooks.

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs = self._family.pass_inputs(named(self._names, args, kwargs))
        references = 0 if inputs.references is None else inputs.references.shape[1]
        # A model with a grid may fill up the tokens of its picture.
        self._tokens = inputs.image_tokens + references if inputs.grid is None else math.prod(inputs.grid)

    def after_first(self, stage: str, output: Any) -> None:
        self._first[stage] = self._image(self._family.output_streams(stage, output)[-1])

    def after_last(self, stage: str, output: Any) -> None:
        self._added[stage] = self._image(self._family.output_streams(stage, output)[-1]) - self._first.pop(stage)

    def head(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor) -> None:
        """After the last norm: measure how the velocity responds to a change of what the blocks add."""
        if self._probing:
            return
        added = self._added["structure"] + self._added["detail"]
        before = []
        for row, index in enumerate(self._indices(len(added))):
            before.append(self._last[index])
            self._last[index] = added[row]
        known = [each for each in before if each is not None]
        if len(known) < len(before):
            return
        change = added - torch.stack(known)
        other = args[0].clone()
        self._image(other).sub_(change)
        self._probing = True
        try:
            again, project = module(other, *args[1:], **kwargs), self._project
            if project is not None:  # the norm before it may be in float32
                output, again = (project(each.type_as(added)) for each in (output, again))
            response = output - again
        finally:
            self._probing = False
        for row, index in enumerate(self._indices(len(added))):
            size = float(change[row].double().norm())
            if index == 0:
                self._gains.append([])
            self._gains[-1].append(float(response[row].double().norm()) / size if size > 0 else 0.0)

    def end(self, _module: nn.Module, _args: Any, output: Any) -> None:
        both, detail = self._added["structure"] + self._added["detail"], self._added["detail"]
        if self._tokens > _TOKENS:
            if self._some is None:
                some = torch.randperm(self._tokens, generator=torch.Generator().manual_seed(0))[:_TOKENS]
                self._some = some.sort().values.to(both.device)
            both, detail = both[:, self._some], detail[:, self._some]
        found = {"velocity": self._family.velocity(output), "reused": both, "detail": detail}
        indices = self._indices(len(both))
        for name, tensor in found.items():
            for row, index in enumerate(indices):
                if index == 0:
                    self._tensors[name].append([])
                self._tensors[name][-1].append(tensor[row].detach().to("cpu", copy=True))
        self._count += len(indices)

    def _indices(self, rows: int) -> list[int]:
        """Which of a step's passes the rows of the current forward pass are."""
        return [(self._count + row) % self._passes for row in range(rows)]

    def _image(self, stream: torch.Tensor) -> torch.Tensor:
        """The image tokens of a stream, a view."""
        stream = stream.detach()
        return stream[:, : self._tokens] if self._family.text_last else stream[:, -self._tokens :]

    def finish(self, scheduler: Any) -> RecordedRun:
        """The recorded matrices.

        Args:
            scheduler: that made the image.

        Raises:
            RunError: the passes do not add up to the scheduler's steps.
        """
        count, odd = divmod(self._count, self._passes)
        if not count or odd:
            raise RunError(
                f"The model ran {self._count} passes, which is not a multiple of {self._passes} passes per step."
            )
        # From the scheduler: the timesteps that the model gets are rounded to its dtype.
        sigmas = [float(timestep) / 1000 for timestep in scheduler.timesteps[-count:]]
        gains = [float(np.mean(each)) for each in self._gains]
        gram = {name: _gram([self._guided(step) for step in steps]) for name, steps in self._tensors.items()}
        if self._some is not None:
            gram |= {name: gram[name] * (self._tokens / len(self._some)) for name in ("reused", "detail")}
        return RecordedRun(
            SolverPasses(tuple(sigmas), intervals(scheduler, count)),
            **gram,
            gains=(gains[0] if gains else 0.0, *gains),
        )

    def _guided(self, passes: list[torch.Tensor]) -> torch.Tensor:
        if len(passes) == 1:
            return passes[0].flatten()
        cond, uncond = (one.flatten() for one in passes)
        return uncond + self._scale * (cond - uncond)


@contextmanager
def recording(transformer: Any, *, passes: int = 1, scale: float = 1.0) -> Iterator[Recording]:
    """Record the one image that is made inside a ``with`` block.

    Args:
        transformer: of any of the families, without a cache.
        passes: per step; 2 with true guidance, the conditional one first.
        scale: of true guidance: what the difference between both passes is multiplied by.

    Raises:
        CacheError: the model belongs to no family.
    """
    stages = stages_of(transformer)
    record = Recording(transformer, passes, scale)
    with ExitStack() as stack:

        def on(handle: Any) -> None:
            stack.callback(handle.remove)

        on(transformer.register_forward_pre_hook(record.begin, with_kwargs=True))
        for stage in stages:
            name = stage.name
            on(stage.blocks[0].register_forward_hook(lambda _m, _a, out, name=name: record.after_first(name, out)))
            on(stage.blocks[-1].register_forward_hook(lambda _m, _a, out, name=name: record.after_last(name, out)))
        on(family_of(transformer).head(transformer)[0].register_forward_hook(record.head, with_kwargs=True))
        on(transformer.register_forward_hook(record.end))
        yield record


def intervals(scheduler: Any, passes: int) -> tuple[float, ...]:
    """How far each pass's velocity moves the image: the sigma interval of its step, split between Heun's two passes.

    Exact for Euler. Heun's first pass also decides where its second one is evaluated, and UniPC combines earlier
    steps: for both this is the first-order part, and the error of a plan is an estimate.
    """
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    if type(scheduler).__name__ == "FlowMatchHeunDiscreteScheduler":
        # Its sigmas are those of the passes, inner ones twice. A step is half its first pass and half its second; the
        # last step has only one.
        cuts = sigmas[0:1] + sigmas[1::2]
        steps = [high - low for high, low in pairwise(cuts)]
        shared = [width / 2 for width in steps[:-1] for _ in range(2)]
        return (*shared, steps[-1])[:passes]
    # Image-to-image omits the first of them.
    sigmas = sigmas[-(passes + 1) :]
    return tuple(abs(high - low) for high, low in pairwise(sigmas))


def _gram(vectors: list[torch.Tensor]) -> Matrix:
    """Inner products in float64, one slice of the vectors at a time."""
    total = np.zeros((len(vectors), len(vectors)))
    width = max(1, _CHUNK // len(vectors))
    for start in range(0, vectors[0].numel(), width):
        part = torch.stack([vector[start : start + width] for vector in vectors]).double()
        total += (part @ part.T).numpy()
    return total
