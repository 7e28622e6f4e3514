"""The content of any untrusted file can be written again, in every format, and is limited in size."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from h2gen.sanitize import is_deep, sanitize
from h2gen.toml import tomllib

TEXT = st.text(st.characters(), max_size=8)  # with surrogates
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_json_and_toml_hold_whatever_becomes_sanitize(table: Any) -> None:
    made = sanitize(table)
    assert json.loads(json.dumps(made, allow_nan=False, ensure_ascii=False).encode()) == made
    assert tomllib.loads(tomli_w.dumps(made).encode().decode()) == made


@pytest.mark.parametrize(
    ("value", "made"),
    [
        ({"a": None, "b": [1, None]}, {"b": [1, "null"]}),
        ("a\ud800b", "a\ufffdb"),
        ({"\udfff": 1}, {"\ufffd": 1}),
        (float("inf"), "inf"),
        (2**63 - 1, 2**63 - 1),
        (2**63, "9223372036854775808"),
        (1 << 100_000, "0x1" + "0" * 25_000),
        (date(2026, 1, 2), "2026-01-02"),
        ((1, True, 0.5), [1, True, 0.5]),
    ],
    ids=range(9),
)
def test_what_cannot_be_held_becomes_text(value: Any, made: Any) -> None:
    assert sanitize(value) == made


def test_what_lies_too_deep_is_cut_off() -> None:
    assert sanitize(deep(400), 3) == {"a": [{"a": "..."}]}


def test_levels_are_counted_as_far_as_they_matter() -> None:
    assert not is_deep(deep(16), 32)
    assert is_deep(deep(16), 31)
    assert is_deep(deep(400), 32)
    assert not is_deep("a", 0)
