"""What a report says besides the figures of its comparison: whose report it is, its finding, its rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RankedRow:
    """A method in a ranking; ``ours`` makes it stand out."""

    label: str
    cells: Sequence[str]
    ours: bool


@dataclass(frozen=True)
class Ranking:
    """A table of methods, the best first. ``columns`` are the titles after the method's."""

    title: str
    columns: Sequence[str]
    rows: Sequence[RankedRow]


@dataclass(frozen=True)
class Story:
    """The command that made the report, its headline and sentences, and tables above the pictures.

    Without a headline, the report says what its comparison says of the chosen method.
    """

    command: str = "h2gen compare"
    headline: str = ""
    sentences: Sequence[str] = ()
    tables: Sequence[Ranking] = ()
