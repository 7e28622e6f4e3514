"""Rows of the table: the device, and how much of its memory may be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from h2gen.checks import Rule
from h2gen.models.choices import memory_limit, split_device
from h2gen.settings.setting import MODEL, Setting


@dataclass(frozen=True)
class DeviceRule(Rule):
    """A kind of device, and perhaps its index; whether there is one is not checked."""

    def check(self, name: str, value: Any) -> str:
        """The device in small letters.

        Raises:
            SettingError: it is not a text.
            DeviceError: there is no such kind of device.
        """
        device = str(super().check(name, value)).lower()
        split_device(device)
        return device


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
