"""``--solver``: higher-order solvers (UniPC, Heun) in place of the pipeline's own, for fewer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler

from h2gen.errors import ModelError
from h2gen.families import family_of
from h2gen.models.choices import evaluations
from h2gen.settings.values import Settings


@contextmanager
def solving(pipe: Any, solver: str) -> Iterator[None]:
    """Replace a pipeline's solver inside the context. It keeps the sigmas of the pipeline's own scheduler.

    Args:
        pipe: a diffusers pipeline.
        solver: one of ``SOLVERS``; ``own`` changes nothing. UniPC takes one forward pass per step, as Euler does;
            Heun takes two, except in the last step.

    Raises:
        ModelError: the pipeline's scheduler does not support flow matching, or the model returns no velocity to solve.

    Sources: UniPC is Zhao et al., arXiv 2302.04867; Heun's method as in Karras et al., arXiv 2206.00364; both as
    implemented in diffusers.
    """
    own = pipe.scheduler
    if solver == "own":
        yield
        return
    if family_of(pipe.transformer).mean_velocity(pipe.transformer.config):
        raise ModelError(
            f"--solver {solver}: this model is distilled to jump from one time to the next, which only its own solver "
            "does; leave out --solver."
        )
    if not type(own).__name__.startswith("FlowMatch"):
        raise ModelError(
            f"--solver {solver}: the model's scheduler, {type(own).__name__}, does not support flow matching; "
            "leave out --solver."
        )
    pipe.scheduler = _unipc(own) if solver == "unipc" else _Heun(own)
    try:
        yield
    finally:
        pipe.scheduler = own


def strength_for(settings: Settings) -> float:
    """The strength to give a pipeline, so that the steps run which the settings say.

    A pipeline takes a solver's passes for its steps, and skips two passes for each: with Heun it would begin too late.
    """
    passes, skipped = evaluations(settings.steps, settings.solver), settings.steps - settings.steps_run
    if passes == settings.steps:
        return settings.strength
    return 1 - (skipped + 0.5) / passes if skipped else 1.0


def _unipc(own: Any) -> Any:
    return _UniPC.from_config(
        own.config,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=own.config.get("shift", 1.0),
        num_train_timesteps=own.config.get("num_train_timesteps", 1000),
    )


class _UniPC(UniPCMultistepScheduler):  # type: ignore[misc]
    """diffusers' UniPC for pipelines that begin with a noisy picture, which ask flow-matching schedulers for it."""

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noisy: torch.Tensor = self.add_noise(sample, noise, timestep)
        return noisy


class _Heun(FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """diffusers' Heun on the sigmas of another flow-matching scheduler: its own are not shifted by image size."""

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
