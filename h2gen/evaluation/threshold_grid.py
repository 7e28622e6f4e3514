"""The grid of cache settings: every combination of several --tau1, --tau2 and --tolerance values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from h2gen.cache.config import CacheConfig
from h2gen.errors import SettingError

LARGEST = 100
"""Settings in a grid, at most."""

Values = str | float | Sequence[float] | None
"""One value, several, or text such as ``0.05,0.1``; None if not given."""


def grid(base: CacheConfig, tau1: Values, tau2: Values, tolerance: Values = None) -> list[CacheConfig]:
    """Every combination of the values; values not given, and all other settings, are those of ``base``.

    Raises:
        SettingError: one is not a number or negative, or there are too many combinations.
    """
    first = [base.tau1] if tau1 is None else parse_values("tau1", tau1)
    second = [base.tau2] if tau2 is None else parse_values("tau2", tau2)
    third = [base.tolerance] if tolerance is None else parse_values("tolerance", tolerance)
    count = len(first) * len(second) * len(third)
    if count > LARGEST:
        raise SettingError(f"That would be {count} settings; give at most {LARGEST}.")
    return [replace(base, tau1=one, tau2=two, tolerance=three) for one, two, three in product(first, second, third)]


def parse_values(name: str, values: str | float | Sequence[float]) -> list[float]:
    """Numbers, without repetitions.

    Raises:
        SettingError: one is not a number.
    """
    parts: Sequence[str | float] = (
        values.split(",") if isinstance(values, str) else (values if isinstance(values, Sequence) else [values])
    )
    try:
        return list(dict.fromkeys(float(part) for part in parts))
    except (ValueError, TypeError) as error:
        raise SettingError(f"{name} is {values!r}; give numbers such as 0.05,0.1.") from error
