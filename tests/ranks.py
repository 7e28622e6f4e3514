"""Pictures made by four processes together, and by two of them: gloo on the CPU, started once for all cases."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import FluxKontextPipeline, FluxPipeline

from h2gen.cache import CacheConfig, StepRecord, apply, remove
from h2gen.models.parallel import split_tokens
from tests.small import (
    flux2_klein_pipeline,
    flux2_pipeline,
    flux_pipeline,
    no_warnings_of_diffusers,
    picture,
    run_kwargs,
)

HEADS = {"num_attention_heads": 4}  # one for each of four processes
GUIDED = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
TWO = {"prompt": ["a cat", "a red ball"]}
LARGE = {"width": 448, "height": 448}
"""The least size that the paper's PFS pools: its detail stage has 784 + 16 tokens in windows of 2."""
SPLIT = {**LARGE, "max_sequence_length": 12}
"""Each of four processes has 3 tokens of text, and half of a window."""


class Case(NamedTuple):
    """A picture.

    Args:
        make: the pipeline.
        cache: settings.
        call: more arguments of the call.
        late: whether the tokens are split after the cache was put on.
    """

    make: Callable[[], Any]
    cache: Mapping[str, Any]
    call: Mapping[str, Any] = {}
    late: bool = False


def flux() -> Any:
    return flux_pipeline(FluxPipeline, **HEADS)


def flux_seven_heads() -> Any:
    return flux_pipeline(FluxPipeline, num_attention_heads=7)


def kontext() -> Any:
    return flux_pipeline(FluxKontextPipeline, **HEADS)


def flux2() -> Any:
    return flux2_pipeline(**HEADS)


def klein() -> Any:
    return flux2_klein_pipeline(is_distilled=False, **HEADS)


THRESHOLDS = {"tau1": 0.3, "tau2": 0.42}
THRESHOLDS2 = {"tau1": 0.7, "tau2": 1.4}
CASES: dict[str, Case] = {
    "thresholds": Case(flux, THRESHOLDS),
    "thresholds, split later": Case(flux, THRESHOLDS, late=True),
    "thresholds, stable pooling": Case(flux, {**THRESHOLDS, "pfs": "stable"}),
    "thresholds, forecast": Case(flux, {**THRESHOLDS, "forecast": 1}),
    "thresholds, budget": Case(flux, {**THRESHOLDS, "budget": True}),
    "thresholds, guidance": Case(flux, THRESHOLDS, GUIDED),
    "thresholds, batch of two": Case(flux, THRESHOLDS, TWO),
    "thresholds, one decision for two": Case(flux, THRESHOLDS, {**TWO, "joint_attention_kwargs": {"other": 1}}),
    "thresholds, pooled": Case(flux, THRESHOLDS, LARGE),
    "thresholds, pooled across parts": Case(flux, THRESHOLDS, SPLIT),
    "thresholds, uneven heads": Case(flux_seven_heads, THRESHOLDS),
    "thresholds, reference picture": Case(kontext, {**THRESHOLDS, "forecast": 1}),
    "tolerance": Case(flux, {"tolerance": 0.05}),
    "tolerance, guidance, batch of two": Case(
        flux, {"tolerance": 0.05}, {**GUIDED, **TWO, "negative_prompt": ["a dog"] * 2}
    ),
    "tolerance and thresholds": Case(flux, {**THRESHOLDS, "tolerance": 0.05}),
    "plan": Case(flux, {"plan": "FFSRDFSF", "forecast": 1}),
    "FLUX.2, thresholds": Case(flux2, THRESHOLDS2),
    "FLUX.2, thresholds, stable pooling, batch of two": Case(flux2, {**THRESHOLDS2, "pfs": "stable"}, TWO),
    "FLUX.2, thresholds, reference picture": Case(flux2, THRESHOLDS2, {"image": picture()}),
    "FLUX.2, tolerance": Case(flux2, {"tolerance": 0.05}),
    "FLUX.2, plan": Case(flux2, {"plan": "FFSRDFSF"}),
    "FLUX.2 [klein], thresholds, guidance": Case(klein, THRESHOLDS2, {"guidance_scale": 3.0}),
    "off": Case(flux, {}),
}
STEPS = 8


class Made(NamedTuple):
    """The pictures, ``(B, H, W, 3)``, and the trace."""

    pictures: torch.Tensor
    steps: list[StepRecord]


@cache
def _made_once(make: Callable[[], Any]) -> tuple[Any, Any]:
    """A pipeline, and its transformer as it was made."""
    pipe = make()
    return pipe, pipe.transformer


def make(case: Case, split: Callable[[Any], None] | None = None) -> Made:
    """A case's pictures and its trace, by this process alone unless it splits the tokens."""
    (pipe, transformer), steps = _made_once(case.make), []
    pipe.transformer = deepcopy(transformer)
    given = {**run_kwargs(pipe, steps=STEPS), **case.call}
    if len(given["prompt"]) == 2:
        given["generator"] = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    with ExitStack() as stack:
        stack.enter_context(no_warnings_of_diffusers())
        if split is not None and not case.late:
            split(pipe.transformer)
        if case.cache:
            steps = apply(pipe, CacheConfig(**case.cache)).steps
            stack.callback(remove, pipe)
        if split is not None and case.late:
            split(pipe.transformer)
        pictures = torch.from_numpy(pipe(**given).images)
    return Made(pictures, steps)


def lead(folder: Path) -> None:
    """Start four processes, which need not import anything, and wait for them."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    running = [context.Process(target=work, args=(rank, folder)) for rank in range(4)]
    for each in running:
        each.start()
    for each in running:
        each.join(1800)
        each.kill()


def work(rank: int, folder: Path) -> None:
    """One of four processes. Writes ``RANK.pt``, or else ``RANK.txt``."""
    try:
        _work(rank, folder)
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise


def _work(rank: int, folder: Path) -> None:
    """All cases by all four processes, then by pairs, each of which has every other case."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=4)
    pairs = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("pair", "ring", "ulysses"))
    found: dict[tuple[int, str], Made] = {}
    for size, mesh, names in ((4, None, [*CASES]), (2, pairs, [*CASES][rank // 2 :: 2])):
        split = partial(split_tokens, processes=size, mesh=mesh)
        found |= {(size, name): make(CASES[name], split) for name in names}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
