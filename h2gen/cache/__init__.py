"""H2-Cache (arXiv 2510.27171) for diffusers transformers, usable on its own with any of their pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from h2gen.cache.config import CacheConfig
from h2gen.cache.outcome import Outcome
from h2gen.cache.summary import Summary
from h2gen.cache.trace import StageRecord, StepRecord, Trace

if TYPE_CHECKING:
    from h2gen.cache.attach import apply, h2_cache, remove

__all__ = ["CacheConfig", "Outcome", "StageRecord", "StepRecord", "Summary", "Trace", "apply", "h2_cache", "remove"]


def __getattr__(name: str) -> Any:
    # They import torch and diffusers, which takes seconds that a command which only reads settings can save.
    if name in ("apply", "h2_cache", "remove"):
        from h2gen.cache import attach

        return getattr(attach, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
