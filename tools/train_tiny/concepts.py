"""The concepts that the model is taught, with their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_LIST = Path(__file__).with_name("concepts.txt")
COMMON = 100
"""Number of common concepts, at the head of the list."""


@dataclass(frozen=True)
class Concept:
    """A thing: its Unicode name and everyday names; the first of those is used in tests."""

    unicode: str
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]


def concepts() -> list[Concept]:
    """All concepts, the most common first."""
    lines = [line for line in _LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [_concept(line) for line in lines]


def _concept(line: str) -> Concept:
    names, _, unicode = line.partition(": ")
    words = tuple(name.strip() for name in names.split(","))
    return Concept((unicode or words[0]).lower(), words)
