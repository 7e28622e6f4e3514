"""Pictures and videos with H2-Cache: fewer transformer blocks per denoising step, nearly the same result.

>>> import h2gen
>>> session = h2gen.load("tiny")  # doctest: +SKIP
>>> session.generate("a cat", seed=7).save("cat.png")  # doctest: +SKIP
>>> h2gen.batch(["a cat", "a red apple"], out="pictures").paths  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from h2gen._version import __version__
from h2gen.errors import check_docstrings
from h2gen.wording import did_you_mean

if TYPE_CHECKING:
    from h2gen.batches.api import batch
    from h2gen.batches.observer import BatchObserver
    from h2gen.batches.result import BatchResult
    from h2gen.cache import CacheConfig, Outcome, StepRecord, Summary, Trace, remove
    from h2gen.errors import H2GenError
    from h2gen.evaluation.compare import compare
    from h2gen.evaluation.options import CompareObserver, CompareOptions
    from h2gen.evaluation.tune.options import TuneObserver, TuneOptions
    from h2gen.evaluation.tune.tune import tune
    from h2gen.families.other import Stages
    from h2gen.generation.load import load
    from h2gen.generation.own_pipeline import apply, h2_cache
    from h2gen.generation.result import Result
    from h2gen.generation.session import Session
    from h2gen.settings.values import Settings

__all__ = [
    "BatchObserver",
    "BatchResult",
    "CacheConfig",
    "CompareObserver",
    "CompareOptions",
    "H2GenError",
    "Outcome",
    "Result",
    "Session",
    "Settings",
    "Stages",
    "StepRecord",
    "Summary",
    "Trace",
    "TuneObserver",
    "TuneOptions",
    "__version__",
    "apply",
    "batch",
    "compare",
    "h2_cache",
    "load",
    "remove",
    "tune",
]

# The module of each public name. Some import torch and diffusers, which takes seconds that not every caller needs.
_LAZY = {
    "BatchObserver": "h2gen.batches.observer",
    "BatchResult": "h2gen.batches.result",
    **dict.fromkeys(("CacheConfig", "Outcome", "StepRecord", "Summary", "Trace"), "h2gen.cache"),
    "H2GenError": "h2gen.errors",
    "batch": "h2gen.batches.api",
    "compare": "h2gen.evaluation.compare",
    "tune": "h2gen.evaluation.tune.tune",
    **dict.fromkeys(("CompareObserver", "CompareOptions"), "h2gen.evaluation.options"),
    **dict.fromkeys(("TuneObserver", "TuneOptions"), "h2gen.evaluation.tune.options"),
    "remove": "h2gen.cache",
    "Stages": "h2gen.families.other",
    **dict.fromkeys(("apply", "h2_cache"), "h2gen.generation.own_pipeline"),
    "Result": "h2gen.generation.result",
    "Session": "h2gen.generation.session",
    "load": "h2gen.generation.load",
    "Settings": "h2gen.settings.values",
}
_WITHOUT_TRANSFORMERS = ("h2gen.cache", "h2gen.errors", "h2gen.families", "h2gen.settings")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        if not _LAZY[name].startswith(_WITHOUT_TRANSFORMERS):
            check_docstrings()
        return getattr(import_module(_LAZY[name]), name)
    hint = "" if name.startswith("_") else did_you_mean(name, __all__).rstrip(".")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted(__all__)
