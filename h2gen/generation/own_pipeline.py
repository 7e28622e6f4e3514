"""H2-Cache on a diffusers pipeline of the caller's own: ``h2_cache`` and ``apply``, with presets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from h2gen.arguments import check_names
from h2gen.cache import CacheConfig, StepRecord, Trace
from h2gen.cache import apply as apply_config
from h2gen.cache import h2_cache as cached_by_config
from h2gen.errors import ArgumentError, SettingError
from h2gen.families.other import Stages
from h2gen.settings.resolve import CACHE, resolve_cache
from h2gen.settings.synonyms import meant_or_close

_KNOWN = ("preset", "no_cache", *CACHE)


def apply(
    target: Any,
    config: CacheConfig | None = None,
    *,
    on_step: Callable[[StepRecord], None] | None = None,
    stages: Stages | None = None,
    schedule: Sequence[float] | None = None,
    **settings: Any,
) -> Trace:
    """Put H2-Cache on a pipeline or a transformer until ``h2gen.remove``.

    It replaces a cache that is already on, whose trace then stops. Threads may then share the transformer: each
    trajectory has its own state, and all add to the one trace. Apply and remove the cache while none of them calls it.
    A copy of the transformer has no cache.

    Args:
        target: a pipeline with a transformer of a family in ``h2gen.families``, or such a transformer. The schedule,
            which ``final_steps`` and ``tolerance`` need, is that of the pipeline which calls the transformer.
        config: all settings of the cache.
        on_step: is called with each step's record, in order, as soon as the device has finished it.
        stages: the blocks of a model of any other code, which is then the target.
        schedule: the times of the loop that calls the transformer, and the one after its last step, if it has no
            scheduler of diffusers. The loop moves the latents along the velocity at each step (Euler's method).
        settings: ``preset``, or fields of ``CacheConfig``, with the meaning of the command line's options: they
            override ``config``. Without any, and without ``config``, the default preset, ``balanced``.

    Returns:
        The trace, which grows with every step from now on.

    Raises:
        ArgumentError: there is no such setting.
        SettingError, PresetError: a setting or the preset cannot be used.
        CacheError: the model cannot be cached, diffusers' own cache is on, or another thread is running a step.
    """
    resolved = _resolved("apply", config, settings)
    return apply_config(target, resolved, on_step=on_step, stages=stages, schedule=schedule)


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
    """H2-Cache on a pipeline or transformer within a ``with`` block.

    Otherwise as ``apply``, except that a cache which is already on is an error.

    >>> with h2gen.h2_cache(pipe) as trace:  # doctest: +SKIP
    ...     image = pipe("a cat").images[0]
    >>> trace.summary.estimated_speedup  # doctest: +SKIP
    """
    resolved = _resolved("h2_cache", config, settings)
    with cached_by_config(target, resolved, on_step=on_step, stages=stages, schedule=schedule) as trace:
        yield trace


def _resolved(function: str, config: CacheConfig | None, settings: dict[str, Any]) -> CacheConfig:
    """All settings of the cache."""
    for name in ("speedup", "fidelity"):
        if name in settings:
            raise ArgumentError(
                f"{function}() cannot choose settings by {name}: profiles belong to models that h2gen loads. Give a "
                f"preset or a tolerance, or use h2gen.load(...).generate(..., {name}=...)."
            )
    check_names(function, settings, _KNOWN, meant_or_close)
    if config is not None and settings.get("preset") is not None:
        raise SettingError("config and preset contradict each other; give one.")
    return resolve_cache(settings, config)
