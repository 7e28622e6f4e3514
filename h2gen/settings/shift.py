"""The rule of ``--shift``: a number, ``dynamic`` or ``own``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from h2gen.checks import Rule
from h2gen.errors import SettingError
from h2gen.wording import shown

OWN, DYNAMIC = "own", "dynamic"
"""The model's own shift; and one that follows the size of the picture, as in FLUX.1-dev."""
_LEAST, _MOST = 0.01, 100.0


@dataclass(frozen=True)
class ShiftRule(Rule):
    """A number above 1 spends more of the steps on noise, one below 1 fewer; the value is a text such as ``3``."""

    def check(self, name: str, value: Any) -> str:
        """The value as a text, the same for ``3`` and ``3.0``.

        Raises:
            SettingError: it is neither a number in the range nor one of the words.
        """
        if value in (OWN, DYNAMIC):
            return str(value)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not _LEAST <= number <= _MOST:
            raise SettingError(
                f"{name} is {shown(value)}; give a number from {_LEAST:g} to {_MOST:g}, such as 3, or dynamic."
            )
        return f"{number:g}"

    def check_kind(self, name: str, value: Any) -> None:
        """As ``check``: a number is as good as a text."""
        self.check(name, value)
