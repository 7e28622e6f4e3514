"""What is particular to one family of transformers: one file per family, all under the same contract."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from h2gen.errors import CacheError
from h2gen.families.contract import Family
from h2gen.families.flux1 import Flux1
from h2gen.families.flux2 import Flux2

__all__ = ["FAMILIES", "Family", "family_of", "recognize"]

FAMILIES: dict[str, Family] = {family.transformer: family for family in (Flux1(), Flux2())}
"""By the transformer's class in diffusers. A family added here is known everywhere."""


def family_of(transformer: Any) -> Family:
    """The family of a transformer, by its class or one that it inherits from.

    Raises:
        CacheError: it belongs to none of them.
    """
    for kind in type(transformer).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    known = " or a ".join(FAMILIES)
    raise CacheError(f"H2-Cache needs a {known}, not a {type(transformer).__name__}.")


def recognize(tensors: Iterable[str]) -> Family | None:
    """The family whose transformer a single file with these tensor names holds."""
    names = set(tensors)
    # FLUX.2's files carry names of FLUX.1's too, so the most particular family is asked first.
    return next((family for family in reversed(FAMILIES.values()) if family.recognizes(names)), None)
