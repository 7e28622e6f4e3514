"""Text-to-image for Flux models with H2-Cache: fewer blocks per denoising step, the same picture.

>>> import h2gen
>>> session = h2gen.load("tiny")  # doctest: +SKIP
>>> result = session.generate("a cat", seed=7, cache=h2gen.CacheConfig(tau1=0.08, tau2=0.2))  # doctest: +SKIP
>>> result.image.save("cat.png")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from h2gen._version import __version__

if TYPE_CHECKING:
    from h2gen.cache import CacheConfig, Outcome, StepRecord, Summary, Trace
    from h2gen.cache.hooks import apply, h2_cache, remove
    from h2gen.errors import H2GenError
    from h2gen.generation.session import Result, Session, load
    from h2gen.settings.values import Settings

__all__ = [
    "CacheConfig",
    "H2GenError",
    "Outcome",
    "Result",
    "Session",
    "Settings",
    "StepRecord",
    "Summary",
    "Trace",
    "__version__",
    "apply",
    "h2_cache",
    "load",
    "remove",
]

# Some of these import torch and diffusers, seconds that a command which only reads settings need not pay.
_LAZY = {
    **dict.fromkeys(("CacheConfig", "Outcome", "StepRecord", "Summary", "Trace"), "h2gen.cache"),
    "H2GenError": "h2gen.errors",
    **dict.fromkeys(("apply", "h2_cache", "remove"), "h2gen.cache.hooks"),
    **dict.fromkeys(("Result", "Session", "load"), "h2gen.generation.session"),
    "Settings": "h2gen.settings.values",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
