"""A progress bar for Python callers: the pipeline's own, in terminals and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
