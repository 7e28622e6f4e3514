"""Putting H2-Cache on a transformer or a pipeline and taking it off: ``apply``, ``remove``, ``h2_cache``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from h2gen.cache.config import CacheConfig
from h2gen.cache.engine import Engine
from h2gen.cache.hooks import Attachment
from h2gen.cache.policies import switched_off
from h2gen.cache.schedule import course_finder
from h2gen.cache.trace import StepRecord, Trace
from h2gen.errors import CacheError

_attached: weakref.WeakKeyDictionary[nn.Module, Attachment] = weakref.WeakKeyDictionary()


def _transformer_of(target: Any) -> nn.Module:
    module = getattr(target, "transformer", target)
    if not isinstance(module, nn.Module):
        raise CacheError(f"H2-Cache needs a transformer or a pipeline that has one, not a {type(target).__name__}.")
    unwrapped: nn.Module = unwrap_module(module)
    return unwrapped


def apply(target: Any, config: CacheConfig, *, on_step: Callable[[StepRecord], None] | None = None) -> Trace:
    """Put H2-Cache on a transformer until ``remove``. A cache that is already on it is replaced.

    Args:
        target: a transformer of a family in ``h2gen.families``, or a pipeline that has one. The schedule, which
            ``final_steps`` and ``tolerance`` need, is that of the pipeline which calls the transformer.
        config: the settings.
        on_step: called with each step's record, in order, as soon as the device has finished it.

    Returns:
        The trace, which grows with every step from now on.

    Raises:
        CacheError: the model cannot be cached, or diffusers' own cache is on.
    """
    transformer = _transformer_of(target)
    trace = Trace(on_step)
    engine = Engine(transformer, config, course_finder(target), trace)
    if getattr(transformer, "is_cache_enabled", False):
        name = type(transformer.__dict__["_cache_config"]).__name__
        raise CacheError(f"diffusers' own cache ({name}) is on this transformer; call its disable_cache() first.")
    remove(target)
    _attached[transformer] = Attachment(transformer, engine)
    return trace


def remove(target: Any) -> None:
    """Take H2-Cache off a transformer or a pipeline, which is then as before. Does nothing if there is no cache."""
    transformer = _transformer_of(target)
    attachment = _attached.pop(transformer, None)
    if attachment is not None:
        attachment.detach(transformer)


@contextmanager
def h2_cache(
    target: Any,
    config: CacheConfig | None = None,
    *,
    on_step: Callable[[StepRecord], None] | None = None,
    **settings: Any,
) -> Iterator[Trace]:
    """H2-Cache on a transformer or pipeline within a ``with`` block.

    ``settings`` are fields of ``CacheConfig`` and override ``config``; one of the two must be given. Without a
    ``config``, giving only a tolerance means that there are no thresholds. Otherwise as ``apply``. ``h2gen.h2_cache``
    also takes presets, and has a default.

    >>> with h2gen.cache.h2_cache(pipe.transformer, tau1=0.08, tau2=0.2) as trace:  # doctest: +SKIP
    ...     image = pipe("a cat").images[0]
    >>> trace.summary.estimated_speedup  # doctest: +SKIP
    """
    if config is None:
        if not settings:
            raise CacheError("The cache has no settings here; give a CacheConfig or its fields, or use h2gen.h2_cache.")
        config = CacheConfig(**switched_off(settings))
    trace = apply(target, replace(config, **settings), on_step=on_step)
    try:
        yield trace
        trace.flush(wait=True)
    finally:
        remove(target)
