"""A progress bar for Python callers, the pipeline's own, in terminals and notebooks; and the steps of batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from h2gen.cache.trace import StepRecord


@contextmanager
def progress_bar(pipe: Any, shown: bool | None) -> Iterator[None]:
    """Let the pipeline show its steps.

    Args:
        pipe: a diffusers pipeline.
        shown: None shows them in a terminal and in a notebook only.
    """
    before = getattr(pipe, "_progress_bar_config", {})
    if shown or (shown is None and _somebody_watches()):
        pipe.set_progress_bar_config(**{**before, "disable": False})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


def _somebody_watches() -> bool:
    """Whether this is a notebook, or stderr is a terminal."""
    get = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    in_notebook = "IPKernelApp" in getattr(get(), "config", {})
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def counted_from(first: int, on_step: Callable[[StepRecord], None]) -> Callable[[StepRecord], None]:
    """An observer of a batch's steps whose pictures are counted from ``first``."""
    return lambda record: on_step(replace(record, picture=first + record.picture))
