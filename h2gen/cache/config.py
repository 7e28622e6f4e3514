"""What the cache is told: two thresholds and three guards."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from h2gen.errors import SettingError


@dataclass(frozen=True)
class CacheConfig:
    """Settings of H2-Cache.

    A threshold of 0 switches its stage's check off: the structure stage is then computed at every step, the detail
    stage at every step whose structure is. With both at 0 the cache is off. The guards go beyond the paper; 0 switches
    each of them off.

    Args:
        tau1: threshold of the structure stage (double-stream blocks), a relative change, >= 0.
        tau2: threshold of the detail stage (single-stream blocks), a relative change, >= 0.
        warmup_steps: the first N steps of a trajectory are always full.
        final_steps: the last N steps of a trajectory are always full.
        max_consecutive: at most N steps in a row without a full one.

    Raises:
        SettingError: a threshold is negative or not finite, or a guard is not a whole number >= 0.

    Source: arXiv 2510.27171; 0.15 and 0.22 are what its authors run.
    """

    tau1: float = 0.15
    tau2: float = 0.22
    warmup_steps: int = 0
    final_steps: int = 0
    max_consecutive: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("tau"):
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise SettingError(f"{field.name} is {value!r}, which is not a number; give one such as 0.15.")
                if not 0 <= value <= sys.float_info.max:
                    raise SettingError(f"{field.name} is {value}; give a number from 0 (off) upwards, such as 0.15.")
                object.__setattr__(self, field.name, float(value))
            elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SettingError(f"{field.name} is {value!r}; give a whole number from 0 (off) upwards.")

    @property
    def enabled(self) -> bool:
        """Whether any block can ever be skipped."""
        return self.tau1 > 0 or self.tau2 > 0
