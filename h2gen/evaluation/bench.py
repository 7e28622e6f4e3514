"""What a step costs by its outcome, what the checks cost, and whether the estimated speed-up is true.

Steps are timed on the transformer alone, with guards and extreme thresholds choosing each step's outcome, so that the
figures do not depend on a prompt. Runs are interleaved, the first of each kind is left out, and medians are taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from h2gen.cache import CacheConfig, StepRecord, h2_cache
from h2gen.cache.stages import stages_of
from h2gen.cache.summary import pooling_kernel, relative_change, summarize

_ALWAYS, _NEVER = 1e30, 1e-30
"""Thresholds that every change is below, and that no change is below."""

_EVERY = 4
"""One step of so many is full in the runs that reuse."""


@dataclass(frozen=True)
class Report:
    """Medians, in seconds.

    ``plain`` is a step without the cache; ``full``, ``detail_reused`` and ``all_reused`` are steps with it, checks
    included; ``skipped`` is one of which a plan says that no block runs; ``checks`` is both stages' summaries and
    changes of one step. The speed-ups compare whole runs in which one step of four is full and the others reuse
    everything.
    """

    parameters: int
    blocks: int
    image_tokens: int
    text_tokens: int
    device: str
    dtype: str
    steps: int
    repeats: int
    plain: float
    full: float
    detail_reused: float
    all_reused: float
    skipped: float
    checks: float
    estimated_speedup: float
    measured_speedup: float

    @property
    def checks_share(self) -> float:
        """Of a step without the cache."""
        return self.checks / self.plain

    @property
    def kept(self) -> float:
        """The measured speed-up as a part of the estimate."""
        return self.measured_speedup / self.estimated_speedup

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "checks_share": self.checks_share, "kept": self.kept}


def random_transformer(device: torch.device, dtype: torch.dtype, width: int = 1024, doubles: int = 5) -> nn.Module:
    """A FLUX.1 transformer with ``66 * width**2 * doubles`` random weights, one double block to two single ones."""
    torch.manual_seed(0)
    model: nn.Module = FluxTransformer2DModel(
        num_layers=doubles,
        num_single_layers=2 * doubles,
        num_attention_heads=width // 128,
        joint_attention_dim=512,
        pooled_projection_dim=256,
        guidance_embeds=True,
    )
    # Not the model's own ``to``, which advises against casting trained weights so.
    return nn.Module.to(model, device=device, dtype=dtype).eval()


def measure(transformer: nn.Module, *, image_tokens: int, text_tokens: int, steps: int = 8, repeats: int = 3) -> Report:
    """Time a FLUX.1 transformer.

    Args:
        transformer: on its device, in its dtype, without a cache.
        image_tokens: tokens of the picture; 4096 is 1024x1024 on FLUX.1.
        text_tokens: tokens of the prompt.
        steps: steps of one run; at least 5, so that two of them are full.
        repeats: runs of each kind that are counted.
    """
    inputs = _inputs(transformer, image_tokens, text_tokens)
    reuse_all = CacheConfig(tau1=_ALWAYS, tau2=_ALWAYS, max_consecutive=_EVERY - 1)
    reuse_detail = CacheConfig(tau1=0, tau2=_ALWAYS, max_consecutive=_EVERY - 1)
    check_only = CacheConfig(tau1=_NEVER, tau2=_NEVER)
    skip = CacheConfig(tau1=0, tau2=0, forecast=1, plan="FFSS")

    plain: list[float] = []
    cached: list[float] = []
    records: dict[str, list[StepRecord]] = {"all": [], "detail": [], "check": [], "skip": []}
    share = 1.0
    for repeat in range(repeats + 1):
        seconds, _ = _run(transformer, inputs, steps, None)
        fast, trace = _run(transformer, inputs, steps, reuse_all)
        _, detail = _run(transformer, inputs, _EVERY, reuse_detail)
        _, check = _run(transformer, inputs, 2, check_only)
        _, skipped = _run(transformer, inputs, len(skip.plan), skip)
        if repeat == 0:  # caches, allocators and clocks warm up
            continue
        plain.append(seconds)
        cached.append(fast)
        records["all"] += trace
        records["detail"] += detail
        records["check"] += check
        records["skip"] += skipped
        share = sum(step.blocks_run for step in trace) / sum(step.blocks_total for step in trace)
    return Report(
        parameters=sum(parameter.numel() for parameter in transformer.parameters()),
        blocks=records["all"][0].blocks_total,
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        device=str(inputs["hidden_states"].device),
        dtype=str(inputs["hidden_states"].dtype).removeprefix("torch."),
        steps=steps,
        repeats=repeats,
        plain=statistics.median(plain) / steps,
        full=_median(step for step in records["check"] if step.step > 0),
        detail_reused=_median(step for step in records["detail"] if not step.full),
        all_reused=_median(step for step in records["all"] if step.all_reused),
        skipped=_median(step for step in records["skip"] if step.skipped),
        checks=_checks(transformer, inputs),
        estimated_speedup=1 / share,
        measured_speedup=statistics.median(plain) / statistics.median(cached),
    )


def _median(steps: Iterable[StepRecord]) -> float:
    return statistics.median(step.seconds for step in steps)


def _inputs(transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
    config, weight = transformer.config, transformer.proj_out.weight
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(weight.device, weight.dtype)

    side = max(1, int(image_tokens**0.5))
    img_ids = torch.tensor([[0, i // side, i % side] for i in range(image_tokens)], dtype=torch.float32)
    inputs = {
        "hidden_states": noise(1, image_tokens, config.in_channels),
        "encoder_hidden_states": noise(1, text_tokens, config.joint_attention_dim),
        "pooled_projections": noise(1, config.pooled_projection_dim),
        "img_ids": img_ids.to(weight.device),
        "txt_ids": torch.zeros(text_tokens, 3, device=weight.device),
        "return_dict": False,
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((1,), 3.5, device=weight.device)
    return inputs


@torch.no_grad()
def _run(
    transformer: nn.Module, inputs: dict[str, Any], steps: int, config: CacheConfig | None
) -> tuple[float, list[StepRecord]]:
    """Seconds of one run of denoising steps, device synchronised, and its records where the cache is on."""
    device = inputs["hidden_states"].device
    timesteps = [torch.full((1,), 1 - i / steps, device=device) for i in range(steps)]

    def denoise() -> float:
        _wait(device)
        started = time.perf_counter()
        for timestep in timesteps:
            transformer(timestep=timestep, **inputs)
        _wait(device)
        return time.perf_counter() - started

    if config is None:
        return denoise(), []
    with h2_cache(transformer, config) as trace:
        seconds = denoise()
    return seconds, trace.steps


@torch.no_grad()
def _checks(transformer: nn.Module, inputs: dict[str, Any], runs: int = 20) -> float:
    """Seconds that one step spends on both stages' summaries and changes."""
    hidden = inputs["hidden_states"]
    width = int(getattr(transformer, "inner_dim"))  # noqa: B009 - nn.Module types its attributes as tensors
    image, text = hidden.shape[1], inputs["encoder_hidden_states"].shape[1]

    def check(tokens: int, divisor: int) -> Callable[[], float]:
        before, after = (torch.randn(1, tokens, width).to(hidden.device, hidden.dtype) for _ in range(2))
        kernel = pooling_kernel(tokens, divisor)
        kept = summarize(after - before, kernel)

        def once() -> float:
            _wait(hidden.device)
            started = time.perf_counter()
            residual = torch.empty_like(after)
            torch.sub(after, before, out=residual)
            relative_change(kept, summarize(residual, kernel)).item()
            return time.perf_counter() - started

        return once

    structure, detail = stages_of(transformer)
    total = 0.0
    for once in (check(image, structure.divisor), check(text + image, detail.divisor)):
        once()
        total += statistics.median(once() for _ in range(runs))
    return total


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
