"""H2-Cache for diffusers' Flux transformers, usable alone on any pipeline of theirs (arXiv 2510.27171)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from h2gen.cache.config import CacheConfig
from h2gen.cache.outcome import Outcome
from h2gen.cache.trace import StageRecord, StepRecord, Summary, Trace

if TYPE_CHECKING:
    from h2gen.cache.hooks import apply, h2_cache, remove

__all__ = ["CacheConfig", "Outcome", "StageRecord", "StepRecord", "Summary", "Trace", "apply", "h2_cache", "remove"]


def __getattr__(name: str) -> Any:
    # The hooks import torch and diffusers, seconds that a command which only reads settings need not pay.
    if name in ("apply", "h2_cache", "remove"):
        from h2gen.cache import hooks as hook

        return getattr(hook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
