"""Seeds: from ``--seed 1,5,10-13`` and ``--count``, at random, or derived from the prompt."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Any

from h2gen.errors import SettingError
from h2gen.settings.table import BY_NAME, MOST_SEEDS, SEEDS
from h2gen.wording import shown


def random_seed() -> int:
    """A random seed, short enough to retype."""
    return secrets.randbelow(2**32)


def parse_seeds(given: Any, called: str = "seed") -> tuple[int, ...] | None:
    """Seeds from ``7``, ``"1,5,10-13"`` or ``[1, 5]``, in the order given, each once.

    Args:
        given: what the user gave; ``random`` or -1, as in other programs, for a random seed.
        called: what the caller calls it, for messages.

    Returns:
        The seeds; None for a random one.

    Raises:
        SettingError: it has another form, or a seed is out of range.
    """
    if not isinstance(given, bool) and str(given).strip().lower() in ("-1", "random"):
        return None
    wrong = f"{called} is {shown(given if isinstance(given, (str, int, float)) else str(given))}"
    refused = SettingError(f"{wrong}; give whole numbers such as 7, or 1,5,10-13, or random.")
    if isinstance(given, (bool, float)) or not str(given).strip() or given in ([], ()):
        raise refused
    ranges: list[range] = []
    total = 0
    for part in given if isinstance(given, (list, tuple)) else str(given).split(","):
        match = re.fullmatch(r"\s*(\d{1,1000})\s*(?:-\s*(\d{1,1000})\s*)?", str(part), re.ASCII)
        if isinstance(part, (bool, float)) or match is None:
            raise refused
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise SettingError(f"{wrong}; {first}-{last} runs backwards; give {last}-{first}.")
        if last >= SEEDS:
            raise SettingError(f"{wrong}; give whole numbers from 0 to {SEEDS - 1}.")
        ranges.append(range(first, last + 1))
        total += last + 1 - first
        if total > MOST_SEEDS:
            raise SettingError(f"{wrong}; that is more than {MOST_SEEDS} seeds; give fewer.")
    return tuple(dict.fromkeys(seed for each in ranges for seed in each))


def count_seeds(seeds: Sequence[int] | None, count: Any) -> tuple[int, ...] | int:
    """The seeds, or their number if none is given; a count means that many from one seed upwards.

    Raises:
        SettingError: the count cannot be used, or there are several seeds too.
    """
    if count is None:
        return tuple(seeds) if seeds is not None else 1
    number = int(BY_NAME["count"].check(count))
    if seeds is None:
        return number
    if len(seeds) > 1:
        raise SettingError(f"There are {len(seeds)} seeds and a count of {number}; give one seed, or no count.")
    if seeds[0] + number > SEEDS:
        raise SettingError(f"seed is {seeds[0]}; {number} seeds from there pass 2**63 - 1; give a smaller one.")
    return tuple(range(seeds[0], seeds[0] + number))


def choose_seeds(seeds: str | None, count: int | None) -> tuple[int, ...]:
    """The seeds of ``--seed`` and ``--count``; random ones if none is given.

    Raises:
        SettingError: one of them cannot be used, or the two contradict each other.
    """
    chosen = count_seeds(None if seeds is None else parse_seeds(seeds), count)
    return tuple(random_seed() for _ in range(chosen)) if isinstance(chosen, int) else chosen


def derived_seed(prompt: str, ordinal: int) -> int:
    """A seed derived from the prompt, so that starting the same batch again means the same pictures.

    Args:
        prompt: the text.
        ordinal: the number of this seed among those of the prompt in a run, from 0.
    """
    return int.from_bytes(hashlib.sha256(f"{prompt}\0{ordinal}".encode()).digest()[:4], "big")
