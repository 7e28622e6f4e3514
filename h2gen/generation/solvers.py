"""``--solver`` and ``--shift``: other solvers in place of the pipeline's own, and another schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from h2gen.errors import ModelError
from h2gen.families import family_of
from h2gen.models.choices import evaluations
from h2gen.settings.shift import DYNAMIC, OWN
from h2gen.settings.solvers import is_flow_unipc, why_not
from h2gen.settings.values import Settings


@contextmanager
def solving(
    pipe: Any, solver: str, shift: str = OWN, generators: Sequence[torch.Generator] | None = None
) -> Iterator[None]:
    """Replace a pipeline's solver inside the context. It keeps the sigmas of the pipeline's own scheduler.

    Args:
        pipe: a diffusers pipeline.
        solver: one of ``SOLVERS``; ``own`` changes nothing. All take one forward pass per step, as Euler does, except
            Heun, which takes two except at the last step.
        shift: of the sigmas, as ``Settings`` has it; ``own`` changes nothing.
        generators: one per picture, for LCM, which adds new noise at each step.

    Raises:
        ModelError: the pipeline's scheduler does not support flow matching, the model returns no velocity to solve, or
            its pipeline does not shift by size.

    Sources: UniPC is Zhao et al., arXiv 2302.04867; Heun's method as in Karras et al., arXiv 2206.00364; DPM++ is Lu et
    al., arXiv 2211.01095; LCM is Luo et al., arXiv 2310.04378; all as implemented in diffusers.
    """
    own = pipe.scheduler
    if solver == "own" and shift == OWN:
        yield
        return
    why = why_not(family_of(pipe.transformer), pipe.transformer.config, type(own).__name__, own.config, solver, shift)
    if why:
        raise ModelError(why)
    pipe.scheduler = _solver(solver, own if shift == OWN else _shifted(own, shift), generators)
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


def _solver(name: str, own: Any, generators: Sequence[torch.Generator] | None) -> Any:
    if name == "own" or (name == "unipc" and _is_unipc(own)):
        return own
    if name == "lcm":
        return _LCM.drawing_from(own, generators)
    return {"unipc": _unipc, "heun": _Heun, "dpm++": _DPM}[name](own)


def _shifted(own: Any, shift: str) -> Any:
    """The scheduler with another shift."""
    if _is_unipc(own):
        return type(own).from_config(own.config, flow_shift=float(shift))
    dynamic = shift == DYNAMIC
    changed = {"use_dynamic_shifting": dynamic, **({} if dynamic else {"shift": float(shift)})}
    return type(own).from_config(own.config, **changed)


def _is_unipc(own: Any) -> bool:
    return is_flow_unipc(type(own).__name__, own.config)


def _unipc(own: Any) -> Any:
    return _UniPC.from_config(
        own.config,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=own.config.get("shift", 1.0),
        num_train_timesteps=own.config.get("num_train_timesteps", 1000),
    )


class _UniPC(UniPCMultistepScheduler):  # type: ignore[misc]
    """diffusers' UniPC for pipelines that begin with a noisy picture, which ask flow-matching schedulers for it, and
    for those that give it a list of sigmas."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        super().set_timesteps(num_inference_steps, device, None if sigmas is None else np.asarray(sigmas), mu)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noisy: torch.Tensor = self.add_noise(sample, noise, timestep)
        return noisy


class _OnSigmasOf:
    """A solver on the sigmas of another flow-matching scheduler, ``_own``. From its configuration a pipeline reads how
    to shift them by the picture's size.
    """

    _own: Any

    def _follow(self: Any, own: Any) -> None:
        for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"):
            if own.config.get(name) is not None:
                self.register_to_config(**{name: own.config[name]})
        self._own = type(own).from_config(own.config)

    def set_timesteps(
        self: Any,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        self._own.set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
        self._take_sigmas(device)
        self._step_index = self._begin_index = None


class _DPM(_OnSigmasOf, DPMSolverMultistepScheduler):  # type: ignore[misc]
    """diffusers' DPM++ 2M on the sigmas of another flow-matching scheduler; those of its own are whole timesteps."""

    def __init__(self, own: Any) -> None:
        super().__init__(
            num_train_timesteps=own.config.get("num_train_timesteps", 1000), prediction_type="flow_prediction"
        )
        self._follow(own)

    def _take_sigmas(self, _device: Any) -> None:
        self.sigmas, self.timesteps = self._own.sigmas.cpu(), self._own.timesteps
        self.num_inference_steps = len(self.timesteps)
        self.model_outputs, self.lower_order_nums = [None] * self.config.solver_order, 0

    def _sigma_to_alpha_sigma_t(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - sigma, sigma

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        self._own._begin_index, self._own._step_index = self.begin_index, self.step_index
        noisy: torch.Tensor = self._own.scale_noise(sample, timestep, noise)
        return noisy


class _LCM(FlowMatchLCMScheduler):  # type: ignore[misc]
    """diffusers' LCM, with its noise from the seeds of the pictures: pipelines give it no generator."""

    _generators: list[torch.Generator] | None = None

    @classmethod
    def drawing_from(cls, own: Any, generators: Sequence[torch.Generator] | None) -> Any:
        made = cls.from_config(own.config)
        made._generators = None if generators is None else [*generators]
        return made

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return super().step(*args, **{"generator": self._generators, **kwargs})


class _Heun(_OnSigmasOf, FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """diffusers' Heun on the sigmas of another flow-matching scheduler: its own are not shifted by image size."""

    def __init__(self, own: Any) -> None:
        super().__init__(num_train_timesteps=own.config.get("num_train_timesteps", 1000))
        self._follow(own)

    def _take_sigmas(self, device: Any) -> None:
        ends = self._own.sigmas  # one more than steps, the last one 0
        self.num_inference_steps = len(ends) - 1
        inner = ends[1:-1].repeat_interleave(2)
        self.sigmas = torch.cat([ends[:1], inner, ends[-1:]])
        self.timesteps = torch.cat([ends[:1], inner]).to(device) * self.config.num_train_timesteps
        self.prev_derivative = self.dt = None
