"""Caches of diffusers itself, which cannot run together with this one."""

from __future__ import annotations

from torch import nn

from h2gen.errors import CacheError


def refuse_other_caches(transformer: nn.Module, *, everywhere: bool) -> None:
    """Raise if one of diffusers' own caches is on.

    Args:
        everywhere: also look at each module for the hooks of one that was put on without ``enable_cache``, which takes
            about a millisecond.

    Raises:
        CacheError: there is one.
    """
    if getattr(transformer, "is_cache_enabled", False):
        name = type(transformer.__dict__["_cache_config"]).__name__
        raise CacheError(f"diffusers' own cache ({name}) is on this transformer; call its disable_cache() first.")
    for module in transformer.modules() if everywhere else ():
        registry = module.__dict__.get("_diffusers_hook")
        for name, hook in {} if registry is None else registry.hooks.items():
            if hook._is_stateful and type(hook).__module__.startswith("diffusers."):
                raise CacheError(f"diffusers' own cache ({name}) is on this transformer; take its hooks off first.")
