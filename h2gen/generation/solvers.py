"""Another solver in the place of a pipeline's own: a higher order, for fewer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler

from h2gen.errors import ModelError


@contextmanager
def solving(pipe: Any, solver: str) -> Iterator[None]:
    """Run a Flux pipeline with another solver on the sigmas of its own, shifted as it shifts them; afterwards it has
    its own back.

    Args:
        pipe: a pipeline of diffusers.
        solver: one of ``SOLVERS``; ``own`` changes nothing. UniPC takes one forward pass a step, as Euler does, Heun
            two, and one in the last step.

    Raises:
        ModelError: the pipeline's scheduler is none for flow matching.

    Sources: UniPC is Zhao et al., arXiv 2302.04867, and Heun's method as in Karras et al., arXiv 2206.00364, both as
    diffusers implements them.
    """
    own = pipe.scheduler
    if solver == "own":
        yield
        return
    if not type(own).__name__.startswith("FlowMatch"):
        raise ModelError(f"The model's scheduler is {type(own).__name__}, which is none for flow matching.")
    pipe.scheduler = _unipc(own) if solver == "unipc" else _Heun(own)
    try:
        yield
    finally:
        pipe.scheduler = own


def _unipc(own: Any) -> Any:
    return UniPCMultistepScheduler.from_config(
        own.config,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=own.config.get("shift", 1.0),
        num_train_timesteps=own.config.get("num_train_timesteps", 1000),
    )


class _Heun(FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """diffusers' Heun on the sigmas that another scheduler of flows makes; its own know no shift by size."""

    def __init__(self, own: Any) -> None:
        super().__init__(num_train_timesteps=own.config.get("num_train_timesteps", 1000))
        for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"):
            if own.config.get(name) is not None:  # a pipeline reads them here
                self.register_to_config(**{name: own.config[name]})
        self._own = type(own).from_config(own.config)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        self._own.set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
        ends = self._own.sigmas  # one more than steps, the last one 0
        self.num_inference_steps = len(ends) - 1
        inner = ends[1:-1].repeat_interleave(2)
        self.sigmas = torch.cat([ends[:1], inner, ends[-1:]])
        self.timesteps = torch.cat([ends[:1], inner]).to(device) * self.config.num_train_timesteps
        self.prev_derivative = self.dt = None
        self._step_index = self._begin_index = None
