"""``h2gen bench --ways``: a full step in several ways against plain diffusers: compiled, quantized, with the cache on.

The ways take turns, step by step, and each step is compared with the plain one of its round: a machine whose speed
drifts slows both. The order within a round is drawn anew, so that no way profits from what ran before it. Two models of
the same weights still differ by up to 1 % for as long as they live, by where their objects lie in memory; so every few
rounds run on models made anew. A difference of a few tenths of a percent then shows in some hundreds of rounds.
Compiled and quantized models take too long to make: theirs stay, and their intervals do not include that 1 %.
"""

from __future__ import annotations

import copy
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from h2gen.cache import CacheConfig, h2_cache
from h2gen.cache.stages import stages_of
from h2gen.errors import SettingError
from h2gen.evaluation.bench import Subject, wait
from h2gen.families import family_of
from h2gen.models.compiling import check_compile, compile_blocks
from h2gen.models.devices import choose_device, choose_dtype
from h2gen.models.quantization import QUANTIZATIONS
from h2gen.models.quantize import check_usable, quantize
from h2gen.wording import did_you_mean

CACHES = ("off", "plan", "checks")
"""The cache in a full step: taken off again; on, with a plan that computes every step; on, with both checks."""
PARTS = (*CACHES, "compile", *QUANTIZATIONS)
_WARM = 2
"""Steps of each new model that are not counted."""
_ROUNDS_OF_A_MODEL = 10
"""Counted rounds until models are made anew, except those that take long to make: compiled or quantized ones."""


@dataclass(frozen=True)
class WayFigures:
    """A full step in one way.

    Args:
        way: its parts, joined by ``+``; ``plain`` is diffusers alone.
        seconds: median of a step.
        ratio: median of a step's time divided by that of the plain step of its round.
        low, high: the 95 % interval of that median; None if there are too few steps for one.
        difference: how far its output is from the plain one, relative to the plain one's size; 0 if it is identical.
        begin: seconds to quantize and for the first step, which compiles.
    """

    way: str
    seconds: float
    ratio: float
    low: float | None
    high: float | None
    difference: float
    begin: float


@dataclass(frozen=True)
class WaysReport:
    """All ways, the plain one first; ``rounds`` steps of each are counted."""

    parameters: int
    blocks: int
    image_tokens: int
    text_tokens: int
    device: str
    dtype: str
    rounds: int
    ways: Sequence[WayFigures]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_ways(text: str) -> list[tuple[str, ...]]:
    """Ways, each as its parts in the order of ``PARTS``: ``off,int8+compile`` is two of them.

    Raises:
        SettingError: a part is unknown, or two of one kind are joined.
    """
    found = []
    for way in text.lower().split(","):
        parts = [part.strip() for part in way.split("+")]
        for part in parts:
            if part not in PARTS:
                raise SettingError(
                    f"ways has {part!r}, which is unknown{did_you_mean(part, PARTS)} Choose from {', '.join(PARTS)}; "
                    "+ combines several, commas separate ways."
                )
        for kind in (CACHES, QUANTIZATIONS, ("compile",)):
            if sum(part in kind for part in parts) > 1:
                raise SettingError(f"ways has {way.strip()!r}, whose parts exclude each other; choose one of them.")
        found.append(tuple(sorted(parts, key=PARTS.index)))
    return list(dict.fromkeys(found))


def usable_ways(text: str, device: str, dtype: str) -> list[tuple[str, ...]]:
    """As ``parse_ways``; also checks, before a model is loaded, that the ways can be had here.

    Args:
        text: as in ``parse_ways``.
        device, dtype: as on the command line.

    Raises:
        SettingError: a way cannot be used.
        DeviceError: a package or a compiler is missing, or the device does not compute in one of the ways.
    """
    ways = parse_ways(text)
    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    for part in dict.fromkeys(part for parts in ways for part in parts):
        if part in QUANTIZATIONS:
            check_usable(QUANTIZATIONS[part], f"--ways {part}", where, precision)
        elif part == "compile":
            check_compile(where)
    return ways


@torch.no_grad()
def compare_ways(subject: Subject, ways: Sequence[tuple[str, ...]], rounds: int) -> WaysReport:
    """Time full steps of a transformer in several ways. Its weights are shared; it is left as it was.

    Args:
        subject: what to time.
        ways: from ``parse_ways``.
        rounds: counted steps of each way.
    """
    inputs = subject.inputs()
    family = family_of(subject.transformer)
    latents = family.pass_inputs(family.at(inputs, torch.ones(1))).latents
    device = latents.device
    groups = [min(_ROUNDS_OF_A_MODEL, rounds - first) for first in range(0, rounds, _ROUNDS_OF_A_MODEL)]
    steps = sum(_WARM + counted for counted in groups)
    timesteps = iter([torch.full((1,), 1 - i / steps, device=device) for i in range(steps)])
    seconds: dict[str, list[float]] = {}
    begin: dict[str, float] = {}
    outputs: dict[str, torch.Tensor] = {}

    def step(model: nn.Module, timestep: torch.Tensor) -> tuple[float, torch.Tensor]:
        given = family.at(inputs, timestep)
        wait(device)
        started = time.perf_counter()
        output = family.velocity(model(**given))
        wait(device)
        return time.perf_counter() - started, output

    parts_of: dict[str, tuple[str, ...]] = {"plain": (), **{"+".join(parts): parts for parts in ways}}
    order = random.Random(0)
    models: dict[str, nn.Module] = {}
    with ExitStack() as lasting:
        for counted in groups:
            with ExitStack() as brief:
                for name, parts in parts_of.items():
                    quick = set(parts) <= set(CACHES)
                    if quick or name not in models:
                        started = time.perf_counter()
                        models[name] = _made(subject.transformer, parts, steps, brief if quick else lasting)
                        begin.setdefault(name, 0.0 if quick else time.perf_counter() - started)
                for number in range(-_WARM, counted):
                    timestep = next(timesteps)
                    for name in order.sample(list(models), len(models)):
                        spent, output = step(models[name], timestep)
                        if name not in outputs:
                            begin[name] += spent
                            outputs[name] = output.clone()
                        if number >= 0:
                            seconds.setdefault(name, []).append(spent)
    plain, whole = seconds["plain"], outputs["plain"].float()
    figures = []
    for name in models:
        ratios = [each / one for each, one in zip(seconds[name], plain, strict=True)]
        low, high = median_interval(ratios)
        figures.append(
            WayFigures(
                name,
                statistics.median(seconds[name]),
                statistics.median(ratios),
                low,
                high,
                float((outputs[name] - whole).norm() / whole.norm()),
                begin[name],
            )
        )
    return WaysReport(
        sum(parameter.numel() for parameter in subject.transformer.parameters()),
        sum(len(stage.blocks) for stage in stages_of(subject.transformer)),
        subject.image_tokens,
        subject.text_tokens,
        str(device),
        str(latents.dtype).removeprefix("torch."),
        rounds,
        figures,
    )


def median_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a median, whatever the distribution: between two of the values, by the sign test.

    It takes six values; with fewer there is none, since even their whole range covers less than 95 %.
    """
    ordered, count = sorted(values), len(values)
    outside = 0
    while 2 * sum(math.comb(count, k) for k in range(outside + 1)) / 2**count <= 0.05:
        outside += 1
    return (ordered[outside - 1], ordered[count - outside]) if outside else (None, None)


def _twin(transformer: nn.Module) -> nn.Module:
    """A model with the same weights, made by diffusers alone; they are shared and take no further memory.

    It is a copy only if the weights are quantized already: Python runs a copied model about half a percent slower,
    since it does not store the attributes of a copy as compactly.
    """
    if getattr(transformer, "hf_quantizer", None) is not None:
        tensors = (*transformer.parameters(), *transformer.buffers())
        return copy.deepcopy(transformer, {id(tensor): tensor for tensor in tensors})
    cls = cast(Any, type(transformer))
    with torch.device("meta"):
        model: nn.Module = cls.from_config(cast(Any, transformer).config)
    model.load_state_dict(transformer.state_dict(), assign=True)
    for name, buffer in transformer.named_buffers():  # some of which are no part of the state
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner)._buffers[last] = buffer
    return model.eval().requires_grad_(False)


def _made(transformer: nn.Module, parts: Sequence[str], steps: int, stack: ExitStack) -> nn.Module:
    """The transformer in one way; without any parts, in diffusers' own.

    A cache stays on until the stack is closed, or, with ``off``, was on before.
    """
    model = _twin(transformer)
    device = cast(Any, model).device
    for part in reversed(parts):  # quantized, then compiled, then cached
        if part in QUANTIZATIONS:
            quantize(model, QUANTIZATIONS[part], device, blocks=True)
            model.to(device)
        elif part == "compile":
            compile_blocks(model)
        else:
            with ExitStack() as own:
                own.enter_context(h2_cache(model, _CONFIGS[part](steps)))
                if part != "off":
                    stack.push(own.pop_all())
    return model


_CONFIGS: Mapping[str, Callable[[int], CacheConfig]] = {
    "off": lambda steps: CacheConfig(plan="F" * steps),
    "plan": lambda steps: CacheConfig(plan="F" * steps, forecast=1),
    "checks": lambda steps: CacheConfig(tau1=1e-30, tau2=1e-30),
}
