"""``h2gen bench``: the time of each kind of step and of the checks, and the measured against the estimated speed-up.

Only the transformer is timed. Guards and extreme thresholds force each step's outcome, so the figures do not depend on
a prompt. Runs are interleaved, the first of each kind is not counted, and medians are reported.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from h2gen.cache import CacheConfig, StepRecord, h2_cache
from h2gen.cache.pfs import pooling_kernel, relative_change, summarize
from h2gen.cache.stages import stages_of
from h2gen.errors import SettingError
from h2gen.families import family_of
from h2gen.families.contract import PassInputs
from h2gen.families.flux1 import random_transformer
from h2gen.generation.session import open_session
from h2gen.models import choose_device, choose_dtype, resolve
from h2gen.models.footprint import width_of
from h2gen.models.load import quiet
from h2gen.models.load_options import LoadOptions
from h2gen.models.quantize import Quantizer
from h2gen.settings.table import MOST_TOKENS
from h2gen.settings.video import latent_frames

_ALWAYS, _NEVER = 1e30, 1e-30
"""A threshold above every change, and one below every change."""

_EVERY = 4
"""In the runs that reuse, one of this many steps is full."""


@dataclass(frozen=True)
class BenchReport:
    """Medians, in seconds.

    ``plain`` is a step without the cache; ``full``, ``detail_reused`` and ``all_reused`` are steps with it, including
    the checks; ``skipped`` is a step in which a plan runs no block; ``checks`` is the summaries and changes of both
    stages in one step. The speed-ups compare whole runs in which one step of four is full and the others reuse
    everything. ``exact`` are the blocks of a step that never run after the first one, because their result is the same
    at every step. ``skipped`` is NaN for a model whose steps cannot be forecast.
    """

    parameters: int
    blocks: float
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
    exact: float = 0.0

    @property
    def checks_share(self) -> float:
        """The checks as a share of a step without the cache."""
        return self.checks / self.plain

    @property
    def kept(self) -> float:
        """The measured speed-up as a share of the estimate."""
        return self.measured_speedup / self.estimated_speedup

    def to_json(self) -> dict[str, Any]:
        skipped = None if math.isnan(self.skipped) else self.skipped  # JSON has no NaN
        return {**asdict(self), "skipped": skipped, "checks_share": self.checks_share, "kept": self.kept}


def bench(
    model: str = "tiny",
    *,
    random: bool = False,
    tokens: int | None = None,
    steps: int = 8,
    repeat: int = 3,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
) -> BenchReport:
    """Time a model's transformer; see ``find_subject`` and ``measure``.

    Args:
        steps: steps per run, at least 5.
        repeat: runs of each kind.

    Raises:
        SettingError: a number is out of range.
        DeviceError: the device does not compute with that quantization, or a package is missing.
        ModelError: the model cannot be loaded.
    """
    subject = find_subject(model, random=random, tokens=tokens, device=device, dtype=dtype, quantize=quantize)
    return measure(
        subject.transformer,
        image_tokens=subject.image_tokens,
        text_tokens=subject.text_tokens,
        steps=steps,
        repeats=repeat,
    )


@dataclass(frozen=True)
class Subject:
    """A transformer to time, on its device and in its dtype, and the number of tokens to time it with."""

    transformer: nn.Module
    image_tokens: int
    text_tokens: int

    def inputs(self) -> dict[str, Any]:
        """Random arguments of its forward pass, all but ``timestep``."""
        return family_of(self.transformer).example_inputs(self.transformer, self.image_tokens, self.text_tokens)


def find_subject(
    model: str = "tiny",
    *,
    random: bool = False,
    tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
) -> Subject:
    """Load the transformer to time.

    Args:
        model: a model, by alias, hub id or path.
        random: take 350 M random weights instead.
        tokens: image tokens; None takes 1024 with ``random`` and otherwise the model's own default size.
        device, dtype, quantize: as on the command line.

    Raises:
        SettingError: the number of tokens is out of range.
        DeviceError: the device does not compute with that quantization, or a package is missing.
        ModelError: the model cannot be loaded.
    """
    if tokens is not None and not 1 <= tokens <= 65536:
        raise SettingError(f"tokens is {tokens}; give a whole number from 1 to 65536.")
    if random:
        where = choose_device(device)
        precision = choose_dtype(dtype, where)
        quantizer = Quantizer(LoadOptions(quantize=quantize), where, precision)
        with quiet():
            transformer = random_transformer(where, precision)
            quantizer.quantize("transformer", transformer)
        return Subject(transformer.to(where), tokens or 1024, 128)
    checkpoint = resolve(model)
    defaults = checkpoint.defaults
    return Subject(
        open_session(checkpoint, LoadOptions(device, dtype, quantize=quantize)).pipe.transformer,
        tokens
        or defaults.width * defaults.height // defaults.size_multiple**2 * latent_frames(defaults.frames, checkpoint),
        min(defaults.max_sequence_length, MOST_TOKENS),
    )


def measure(
    transformer: nn.Module, *, image_tokens: int, text_tokens: int, steps: int = 8, repeats: int = 3
) -> BenchReport:
    """Time a transformer.

    Args:
        transformer: on its device, in its dtype, without a cache.
        image_tokens: 4096 is 1024x1024 on FLUX.1.
        text_tokens: tokens of the prompt.
        steps: steps per run; at least 5, so that two of them are full.
        repeats: counted runs of each kind.
    """
    inputs = family_of(transformer).example_inputs(transformer, image_tokens, text_tokens)
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
    return BenchReport(
        parameters=sum(map(_weights, transformer.parameters())),
        blocks=records["all"][0].blocks_total,
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        device=str(_given(transformer, inputs).latents.device),
        dtype=str(_given(transformer, inputs).latents.dtype).removeprefix("torch."),
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
        exact=records["check"][-1].exact,
    )


def _weights(parameter: nn.Parameter) -> int:
    """The number of weights in a parameter; bitsandbytes stores two of 4 bits in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _median(steps: Iterable[StepRecord]) -> float:
    seconds = [step.seconds for step in steps]
    return statistics.median(seconds) if seconds else math.nan


def _given(transformer: nn.Module, inputs: dict[str, Any]) -> PassInputs:
    family = family_of(transformer)
    return family.pass_inputs(family.at(inputs, torch.ones(1)))


@torch.no_grad()
def _run(
    transformer: nn.Module, inputs: dict[str, Any], steps: int, config: CacheConfig | None
) -> tuple[float, list[StepRecord]]:
    """Seconds of one run of denoising steps, device synchronised, and its records if the cache is on."""
    device, family = _given(transformer, inputs).latents.device, family_of(transformer)
    timesteps = [torch.full((1,), 1 - i / steps, device=device) for i in range(steps)]

    def denoise() -> float:
        wait(device)
        started = time.perf_counter()
        for timestep in timesteps:
            transformer(**family.at(inputs, timestep))
        wait(device)
        return time.perf_counter() - started

    if config is None:
        return denoise(), []
    with h2_cache(transformer, config) as trace:
        seconds = denoise()
    return seconds, trace.steps


@torch.no_grad()
def _checks(transformer: nn.Module, inputs: dict[str, Any], runs: int = 20) -> float:
    """Seconds that one step spends on both stages' summaries and changes."""
    given = _given(transformer, inputs)
    hidden, width = given.latents, width_of(cast(Any, transformer).config)
    image, text = given.image_tokens, given.text_tokens

    def check(tokens: int, divisor: int) -> Callable[[], float]:
        before, after = (torch.randn(1, tokens, width).to(hidden.device, hidden.dtype) for _ in range(2))
        kernel = pooling_kernel(tokens, divisor)
        kept = summarize(after - before, kernel)

        def once() -> float:
            wait(hidden.device)
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


def wait(device: torch.device) -> None:
    """Wait until a device has finished what is queued."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
