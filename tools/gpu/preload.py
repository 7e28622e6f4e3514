"""Imports what the parts need, once for all of them. If that fails, each part fails alike, and reports why."""

import contextlib

with contextlib.suppress(Exception):
    import tools.gpu.parts  # noqa: F401
