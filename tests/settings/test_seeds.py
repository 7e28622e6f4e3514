"""Seeds as users write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2gen.errors import SettingError
from h2gen.settings.seeds import choose_seeds, count_seeds, derived_seed, parse_seeds
from h2gen.settings.table import MOST_SEEDS, SEEDS


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", (7,)),
        (7, (7,)),
        ("1,5,10-13", (1, 5, 10, 11, 12, 13)),
        (" 3 , 1 - 2 ", (3, 1, 2)),
        ([4, "6-7"], (4, 6, 7)),
        ("5,5,4-6", (5, 4, 6)),
        ("0", (0,)),
        (str(SEEDS - 1), (SEEDS - 1,)),
    ],
)
def test_seeds_come_in_the_order_given_and_once(text: Any, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "whole numbers"),
        ("1,-1", "whole numbers"),
        ("-2", "whole numbers"),
        ("99999999999999999999", f"from 0 to {SEEDS - 1}"),
        ("1,", "whole numbers"),
        ("1;2", "whole numbers"),
        ("1.5", "whole numbers"),
        (1.5, "whole numbers"),
        (True, "whole numbers"),
        ([1.0], "whole numbers"),
        ([], "whole numbers"),
        ("seven", "whole numbers"),
        ("\N{ARABIC-INDIC DIGIT THREE}", "whole numbers"),
        ("5-3", "give 3-5"),
        (str(SEEDS), "from 0 to"),
        ("1-9999999999999999999", "from 0 to"),
        (f"0-{MOST_SEEDS}", f"more than {MOST_SEEDS} seeds"),
        (f"1-{MOST_SEEDS},{MOST_SEEDS + 1}-{2 * MOST_SEEDS}", f"more than {MOST_SEEDS} seeds"),
    ],
)
def test_what_is_no_seed_is_named(text: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        parse_seeds(text)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 20)), min_size=1, max_size=5))
def test_ranges_hold_every_seed_between_their_ends(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" for first, more in ranges)
    wanted = {seed for first, more in ranges for seed in range(first, first + more + 1)}
    assert set(parse_seeds(text)) == wanted


def test_a_count_goes_on_from_one_seed() -> None:
    assert count_seeds((7,), 3) == (7, 8, 9)
    assert count_seeds(None, 3) == 3
    assert count_seeds(None, None) == 1
    assert count_seeds((1, 2), None) == (1, 2)


@pytest.mark.parametrize(
    ("seeds", "count", "words"),
    [
        ((1, 2), 3, "one seed, or no count"),
        (None, 0, "whole number from 1"),
        (None, True, "whole number from 1"),
        (None, MOST_SEEDS + 1, "whole number from 1"),
        ((SEEDS - 1,), 2, "2 seeds from there pass"),
    ],
)
def test_a_count_that_cannot_be_is_named(seeds: tuple[int, ...] | None, count: int, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        count_seeds(seeds, count)


@pytest.mark.parametrize("text", ["-1", -1, "random", " Random "])
def test_minus_one_and_random_mean_a_random_seed(text: Any) -> None:
    assert parse_seeds(text) is None
    assert len(set(choose_seeds(text, 20))) == 20


def test_random_seeds_differ() -> None:
    assert len(set(choose_seeds(None, 20))) == 20
    assert choose_seeds("3", 2) == (3, 4)


def test_derived_seeds_never_change() -> None:
    """A batch begun with one release must continue with the next."""
    assert [derived_seed("a cat", ordinal) for ordinal in range(3)] == [1447738506, 2426300962, 690453176]
    assert derived_seed("a dog", 0) != derived_seed("a cat", 0)
