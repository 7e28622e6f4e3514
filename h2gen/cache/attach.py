"""Putting H2-Cache on a transformer or a pipeline and taking it off: ``apply``, ``remove``, ``h2_cache``."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import EllipsisType
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from h2gen.cache.coming import next_block
from h2gen.cache.config import CacheConfig
from h2gen.cache.engine import Shared
from h2gen.cache.given import given_finder, given_schedule
from h2gen.cache.hooks import Attachment
from h2gen.cache.others import refuse_other_caches
from h2gen.cache.schedule import course_finder
from h2gen.cache.stages import stages_of
from h2gen.cache.trace import StepRecord, Trace
from h2gen.cache.tracker import ContextName
from h2gen.cache.warn import WarnOnce
from h2gen.errors import CacheError
from h2gen.families import family_of
from h2gen.families.other import OtherModel, Stages

_applying = threading.RLock()


def _transformer_of(target: Any) -> nn.Module:
    module = getattr(target, "transformer", target)
    if isinstance(getattr(target, "transformer_2", None), nn.Module):
        raise CacheError(
            f"This {type(target).__name__} has two transformers; put one cache on pipe.transformer and "
            "another on pipe.transformer_2."
        )
    if not isinstance(module, nn.Module):
        raise CacheError(f"H2-Cache needs a transformer or a pipeline that has one, not a {type(target).__name__}.")
    unwrapped: nn.Module = unwrap_module(module)
    return unwrapped


def _model(target: Any) -> nn.Module:
    if not isinstance(target, nn.Module):
        raise CacheError(f"H2-Cache needs a torch model with stages, not a {type(target).__name__}.")
    unwrapped: nn.Module = unwrap_module(target)
    return unwrapped


def apply(
    target: Any,
    config: CacheConfig,
    *,
    on_step: Callable[[StepRecord], None] | None = None,
    stages: Stages | None = None,
    schedule: Sequence[float] | None = None,
) -> Trace:
    """Put H2-Cache on a transformer until ``remove``. It replaces a cache that is already on, whose trace then stops.

    Threads may then share the transformer: each trajectory has its own state, and all add to the one trace. Apply and
    remove the cache while none of them calls it. A copy of the transformer has no cache.

    Args:
        target: a transformer of a family in ``h2gen.families``, or a pipeline that has one. The schedule, which
            ``final_steps`` and ``tolerance`` need, is that of the pipeline which calls the transformer.
        config: the settings.
        on_step: called with each step's record, in order, as soon as the device has finished it.
        stages: of a model of any other code, which is then the target.
        schedule: the times of the loop that calls the transformer, and the one after its last step, if it has no
            scheduler of diffusers. It moves along the velocity at each step (Euler's method).

    Returns:
        The trace, which grows with every step from now on.

    Raises:
        CacheError: the model cannot be cached, diffusers' own cache is on, another thread is running a step, or the
            device has no fp8.
    """
    if stages is not None and not isinstance(stages, Stages):
        raise CacheError(f"stages is a {type(stages).__name__}; give h2gen.Stages(structure=..., detail=...).")
    transformer = _transformer_of(target) if stages is None else _model(target)
    family = family_of(transformer) if stages is None else OtherModel(stages, type(transformer).__name__)
    stages_of(transformer, family)
    if isinstance(family, OtherModel):
        family.check_belongs(transformer)
    refuse_other_caches(transformer, everywhere=True)
    device = getattr(target, "_execution_device", None) or next(transformer.parameters()).device
    if config.cache_memory == "fp8" and torch.device(device).type == "mps":
        raise CacheError("--cache-memory fp8 is not supported on mps; use bf16 or cpu.")
    warn = WarnOnce()
    if family.mean_velocity(getattr(transformer, "config", {})):
        config = without_forecasts(config, warn)
    trace, find_course = Trace(on_step), course_finder(target)
    if schedule is not None:
        sigma = family.sigma if isinstance(family, OtherModel) else float
        find_course = given_finder(given_schedule(schedule, sigma))
    with _applying:
        if (before := _attachment(transformer)) is not None:
            before.detach(transformer, replaced=True)
        Attachment(
            transformer,
            Shared(family, config, find_course, trace, warn, ContextName(), itertools.count()),
            getattr(target, "controlnet", None) if stages is None else None,
        )
    return trace


def without_forecasts(config: CacheConfig, warn: Callable[[str], None]) -> CacheConfig:
    """The settings without those that forecast a model's output or residuals from other steps; says which these are."""
    plan = config.plan.replace("S", "F")
    found = [name for name in ("tolerance", "forecast") if getattr(config, name)]
    if found or plan != config.plan:
        names = " and ".join([*found, *(["S in the plan"] if plan != config.plan else [])])
        warn(
            f"H2-Cache: without effect on this model: {names}. It is distilled to jump from one time to another, and "
            "such jumps cannot be forecast from each other; for speed, use fewer --steps."
        )
    return replace(config, plan="" if config.tolerance else plan, tolerance=0.0, forecast=0)


def remove(target: Any) -> None:
    """Take H2-Cache off a transformer or a pipeline, which is then as before. Does nothing if there is no cache."""
    own = isinstance(target, nn.Module) and _attachment(unwrap_module(target)) is not None
    transformer = unwrap_module(target) if own else _transformer_of(target)  # a model with stages may have a part of
    attachment = _attachment(transformer)  # this name
    if attachment is not None:
        attachment.detach(transformer)


def _attachment(transformer: nn.Module) -> Attachment | None:
    """The cache that is on a transformer: the owner of its hooks, which a shallow copy shares."""
    owners = (getattr(hook, "__self__", None) for hook in transformer._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Attachment) and not owner.closed()), None)


def next_block_to_run(transformer: nn.Module, block: nn.Module | None) -> nn.Module | EllipsisType | None:
    """The block that certainly runs after another one, if the cache knows it; see ``next_block``.

    Returns:
        The block; None if there is none; ``...`` if no cache runs in this thread.
    """
    attachment = _attachment(transformer)
    engine = None if attachment is None else attachment.engine
    return ... if engine is None else next_block(engine, block)


@contextmanager
def h2_cache(
    target: Any,
    config: CacheConfig | None = None,
    *,
    on_step: Callable[[StepRecord], None] | None = None,
    stages: Stages | None = None,
    schedule: Sequence[float] | None = None,
    **settings: Any,
) -> Iterator[Trace]:
    """H2-Cache on a transformer or pipeline within a ``with`` block.

    ``settings`` are fields of ``CacheConfig`` and override ``config``; one of the two must be given. ``h2gen.h2_cache``
    also takes presets, and has a default. Otherwise as ``apply``, except that a cache which is already on is an error.

    >>> with h2gen.cache.h2_cache(pipe.transformer, tau1=0.08, tau2=0.2) as trace:  # doctest: +SKIP
    ...     image = pipe("a cat").images[0]
    >>> trace.summary.estimated_speedup  # doctest: +SKIP
    """
    if config is None:
        if not settings:
            raise CacheError("The cache has no settings here; give a CacheConfig or its fields, or use h2gen.h2_cache.")
        config = CacheConfig(**settings)
    transformer = _transformer_of(target) if stages is None else _model(target)  # which a pipeline may exchange
    with _applying:
        if _attachment(transformer) is not None:
            raise CacheError(
                "H2-Cache is already on this transformer: leave its with block first, or call h2gen.remove()."
            )
        trace = apply(target, replace(config, **settings), on_step=on_step, stages=stages, schedule=schedule)
    try:
        yield trace
        trace.flush(wait=True)
    finally:
        remove(transformer)
