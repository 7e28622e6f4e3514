"""What the blocks run with: another attention, and what compiled ones need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from h2gen.models.attention_names import DEFAULT
from h2gen.models.load_options import LoadOptions
from h2gen.settings.values import Settings


@contextmanager
def kernels(transformer: Any, settings: Settings, options: LoadOptions) -> Iterator[None]:
    """A context to run a transformer's blocks in; it does nothing unless one of them is asked for."""
    with ExitStack() as stack:
        if settings.attention != DEFAULT:
            from h2gen.models.attention import attending

            stack.enter_context(attending(transformer, settings.attention, options.device))
        if options.compile:
            from h2gen.models.compiling import compiled_run

            stack.enter_context(compiled_run())
        yield
