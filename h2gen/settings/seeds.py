"""Which seeds a prompt is painted with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from h2gen.errors import SettingError
from h2gen.settings.values import SEEDS, random_seed
from h2gen.wording import shown

MOST = 100_000
"""Seeds of one prompt."""


def parse_seeds(given: Any) -> tuple[int, ...]:
    """Seeds from ``7``, ``"1,5,10-13"`` or ``[1, 5]``, in the order given, each once.

    Raises:
        SettingError: it is none of these, or a seed is out of range.
    """
    refused = SettingError(f"seed is {given}; give whole numbers such as 7, or 1,5,10-13.")
    if isinstance(given, (bool, float)) or not str(given).strip() or given in ([], ()):
        raise refused
    ranges: list[range] = []
    total = 0
    for part in given if isinstance(given, (list, tuple)) else str(given).split(","):
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?", str(part), re.ASCII)
        if isinstance(part, (bool, float)) or match is None:
            raise refused
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise SettingError(f"seed is {given}; {first}-{last} runs backwards, give {last}-{first}.")
        if last >= SEEDS:
            raise SettingError(f"seed is {given}; give whole numbers from 0 to {SEEDS - 1}.")
        ranges.append(range(first, last + 1))
        total += last + 1 - first
        if total > MOST:
            raise SettingError(f"seed is {given}; that is more than {MOST} seeds, give fewer.")
    return tuple(dict.fromkeys(seed for each in ranges for seed in each))


def count_seeds(seeds: Sequence[int] | None, count: Any) -> tuple[int, ...] | int:
    """What ``count`` makes of the seeds: that many from one seed on, or a number of seeds to be chosen where none is
    given.

    Raises:
        SettingError: the count is no number, or there are several seeds too.
    """
    if count is None:
        return tuple(seeds) if seeds is not None else 1
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise SettingError(f"count is {shown(count)}; give a whole number from 1 to {MOST}.")
    if seeds is None:
        return count
    if len(seeds) > 1:
        raise SettingError(f"There are {len(seeds)} seeds and a count of {count}; give one seed, or no count.")
    if seeds[0] + count > SEEDS:
        raise SettingError(f"seed is {seeds[0]}; there are no {count} seeds from there on, give a smaller one.")
    return tuple(range(seeds[0], seeds[0] + count))


def choose_seeds(seeds: str | None, count: int | None) -> tuple[int, ...]:
    """The seeds of ``--seed`` and ``--count``; random ones where none is given.

    Raises:
        SettingError: one of them cannot be used, or not with the other.
    """
    chosen = count_seeds(None if seeds is None else parse_seeds(seeds), count)
    return tuple(random_seed() for _ in range(chosen)) if isinstance(chosen, int) else chosen


def derived_seed(prompt: str, ordinal: int) -> int:
    """A seed made from the prompt, so that the same batch means the same pictures each time it is started.

    Args:
        prompt: the text.
        ordinal: counts the seeds of this prompt in a run, from 0.
    """
    return int.from_bytes(hashlib.sha256(f"{prompt}\0{ordinal}".encode()).digest()[:4], "big")
