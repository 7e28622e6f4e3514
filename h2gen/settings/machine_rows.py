"""Rows of the table: the device, and how much of its memory may be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from h2gen.checks import Rule
from h2gen.models.choices import memory_limit
from h2gen.settings.setting import MODEL, Setting


@dataclass(frozen=True)
class DeviceRule(Rule):
    """The name of a device; whether there is one is not checked."""

    def check(self, name: str, value: Any) -> str:
        """The name in small letters.

        Raises:
            SettingError: it is not a text.
        """
        return str(super().check(name, value)).lower()


@dataclass(frozen=True)
class MemoryRule(Rule):
    """A size such as ``10GB``, ``auto`` or ``none``."""

    def check(self, name: str, value: Any) -> str:
        """The size as it was given; the words in small letters.

        Raises:
            SettingError: it is something else.
        """
        text = str(super().check(name, value))
        return text.strip().lower() if memory_limit(text, name) is None else text


DEVICE = Setting(
    "device",
    "auto, cpu, cuda, cuda:1, mps, xpu.",
    DeviceRule(str),
    MODEL,
    metavar="NAME",
    default="auto",
    lasting=True,
)
MEMORY = Setting(
    "memory",
    "GPU memory to use at most, such as 10GB; auto: what is free.",
    MemoryRule(str),
    MODEL,
    metavar="SIZE",
    default="auto",
    lasting=True,
)
