"""What a plan could leave out, measured on an uncached run: inner products between steps of the velocity and of each
stage's residual.

The tensors of one picture are held in the host's memory while it is made, in the model's dtype (for FLUX.1 at
1024x1024 about 50 MB a step); what is kept of it are a few matrices of steps by steps.
"""

from __future__ import annotations

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
from h2gen.evaluation.tune.edge_costs import Matrix, Schedule

_CHUNK = 1 << 22
"""Values of all steps that are multiplied at once, in float64."""


@dataclass(frozen=True)
class Recorded:
    """One picture's steps.

    Under true guidance everything is of the guided tensors, ``u + scale * (c - u)`` of the two passes: what a step
    forecasts in both passes alike, it forecasts in the guided one.

    Args:
        schedule: sigmas and intervals of the passes.
        velocity: ``(n, n)`` inner products of the velocity.
        reused: the same of what both stages' blocks after the first add to the image tokens.
        detail: the same of the detail stage alone.
        gains: ``(n,)``, how much the velocity changes for a change of what the blocks add: at each step measured
            along the change from the step before, through the model's last layers. An estimate, for R and D alone.
    """

    schedule: Schedule
    velocity: Matrix
    reused: Matrix
    detail: Matrix
    gains: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "sigmas": list(self.schedule.sigmas),
            "intervals": list(self.schedule.intervals),
            "gains": list(self.gains),
            **{name: getattr(self, name).tolist() for name in ("velocity", "reused", "detail")},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Recorded:
        gram = {name: np.asarray(data[name], np.float64) for name in ("velocity", "reused", "detail")}
        return Recorded(Schedule(tuple(data["sigmas"]), tuple(data["intervals"])), **gram, gains=tuple(data["gains"]))


class Recording:
    """The passes of one picture, as they come. ``finish`` makes them into matrices."""

    def __init__(self, transformer: Any, passes: int, scale: float) -> None:
        self._transformer, self._passes, self._scale = transformer, passes, scale
        self._tensors: dict[str, list[list[torch.Tensor]]] = {"velocity": [], "reused": [], "detail": []}
        self._gains: list[list[float]] = []
        self._first: dict[str, torch.Tensor] = {}
        self._added: dict[str, torch.Tensor] = {}
        self._last: list[torch.Tensor | None] = [None] * passes
        self._count = 0
        self._tokens = 0
        self._probing = False

    # What hooks tell.

    def begin(self, _module: nn.Module, _args: Any, kwargs: Mapping[str, Any]) -> None:
        self._tokens = kwargs["hidden_states"].shape[1]

    def after_first(self, stage: str, output: Any) -> None:
        self._first[stage] = self._image(output)

    def after_last(self, stage: str, output: Any) -> None:
        self._added[stage] = self._image(output) - self._first.pop(stage)

    def head(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        """The last norm has run: find out how the velocity answers to what the blocks add."""
        if self._probing:
            return
        added = self._added["structure"] + self._added["detail"]
        branch = self._count % self._passes
        before, self._last[branch] = self._last[branch], added
        if before is None:
            return
        change = added - before
        self._probing = True
        try:
            project = self._transformer.proj_out
            answer = project(output) - project(module(args[0] - change, *args[1:]))
        finally:
            self._probing = False
        size = float(change.double().norm())
        self._gain(float(answer.double().norm()) / size if size > 0 else 0.0)

    def _gain(self, value: float) -> None:
        if self._count % self._passes == 0:
            self._gains.append([])
        self._gains[-1].append(value)

    def end(self, _module: nn.Module, _args: Any, output: Any) -> None:
        velocity = output[0] if isinstance(output, tuple) else output.sample
        both = self._added["structure"] + self._added["detail"]
        for name, tensor in (("velocity", velocity), ("reused", both), ("detail", self._added["detail"])):
            if self._count % self._passes == 0:
                self._tensors[name].append([])
            self._tensors[name][-1].append(tensor.detach().to("cpu", copy=True))
        self._count += 1

    def _image(self, output: Any) -> torch.Tensor:
        """The image tokens: of two streams the second, of one its end."""
        hidden: torch.Tensor = output[1] if isinstance(output, tuple) else output
        return hidden[:, -self._tokens :].detach()

    def finish(self, scheduler: Any) -> Recorded:
        """The matrices.

        Raises:
            RunError: the passes are not those of the scheduler's steps.
        """
        count, odd = divmod(self._count, self._passes)
        if not count or odd:
            raise RunError(f"{self._count} passes of the model were seen, which are no steps of {self._passes} each.")
        # The scheduler's own: what the model was given is rounded to its dtype.
        sigmas = [float(timestep) / 1000 for timestep in scheduler.timesteps[-count:]]
        gains = [float(np.mean(each)) for each in self._gains]
        gram = {name: _gram([self._guided(step) for step in steps]) for name, steps in self._tensors.items()}
        return Recorded(
            Schedule(tuple(sigmas), intervals(scheduler, count)),
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
    """Record the one picture that is made inside a ``with`` block.

    Args:
        transformer: of FLUX.1 or FLUX.2, without a cache.
        passes: forward passes a step; 2 with true guidance, where the conditional one comes first.
        scale: of true guidance.

    Raises:
        CacheError: it is another model.
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
        on(transformer.norm_out.register_forward_hook(record.head))
        on(transformer.register_forward_hook(record.end))
        yield record


def intervals(scheduler: Any, passes: int) -> tuple[float, ...]:
    """How far each pass's velocity moves the picture: the sigma interval of its step, which Heun's two passes share.

    Exact for Euler. Heun's first pass also says where its second one looks, and UniPC mixes in the steps before: for
    them it is the part of first order, and a plan's error an estimate.
    """
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    if type(scheduler).__name__ == "FlowMatchHeunDiscreteScheduler":
        # Its sigmas are those of the passes, inner ones twice; a step is half its first pass and half its second, and
        # the last step has but one.
        cuts = sigmas[0:1] + sigmas[1::2]
        steps = [high - low for high, low in pairwise(cuts)]
        shared = [width / 2 for width in steps[:-1] for _ in range(2)]
        return (*shared, steps[-1])[:passes]
    # Image-to-image leaves out the first of them.
    sigmas = sigmas[-(passes + 1) :]
    return tuple(abs(high - low) for high, low in pairwise(sigmas))


def _gram(vectors: list[torch.Tensor]) -> Matrix:
    """Inner products in float64, a slice of the vectors at a time."""
    total = np.zeros((len(vectors), len(vectors)))
    width = max(1, _CHUNK // len(vectors))
    for start in range(0, vectors[0].numel(), width):
        part = torch.stack([vector[start : start + width] for vector in vectors]).double()
        total += (part @ part.T).numpy()
    return total
