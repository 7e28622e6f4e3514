"""Rules: what a value may be, and one line about what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from h2gen.checks import Rule
from h2gen.errors import SettingError

BAD: list[tuple[Rule, Any, str]] = [
    (Rule(int, 1, 9), 0, "x is 0; give a whole number from 1 to 9."),
    (Rule(int, 1, 9), 10, "x is 10; give a whole number from 1 to 9."),
    (Rule(int, 1), "3", "x is '3'; give a whole number from 1 upwards."),
    (Rule(int), 1.5, "x is 1.5; give a whole number."),
    (Rule(int), True, "x is True; give a whole number."),
    (Rule(float, 0, 1000), float("nan"), "x is nan; give a number from 0 to 1000."),
    (Rule(float, 0), float("inf"), "x is inf; give a number from 0 upwards."),
    (Rule(float, 0), 10**400, f"x is 1{'0' * 39}...; give a number from 0 upwards."),
    (Rule(float, above=1, advice="give a number above 1"), 1, "x is 1; give a number above 1."),
    (Rule(bool), 1, "x is 1; give true or false."),
    (Rule(str), None, "x is empty; give it as text."),
    (Rule(str), ["a"], "x is a list; give it as text."),
    (Rule(str), "\ud800", "x is not UTF-8 text."),
    (Rule(str, longest=3), "abcd", "x has more than 3 characters; shorten it."),
    (Rule(str, choices=("a", "b", "c")), "d", "x 'd' is not supported; choose a, b or c."),
    (Rule(str, choices=("a", "b")), ["a"], "x is a list; choose a or b."),
    (Rule(list), "a", "x is 'a'; give a list of texts."),
    (Rule(list), ["a", 1], "x is a list; give a list of texts."),
    (Rule(dict), "a", "x is 'a'; give a table."),
]


@pytest.mark.parametrize(("rule", "value", "message"), BAD, ids=range(len(BAD)))
def test_a_value_that_breaks_a_rule_is_named_with_what_to_give(rule: Rule, value: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        rule.check("x", value)
    assert str(error.value) == message


def test_what_keeps_the_rule_comes_back_as_its_type() -> None:
    assert isinstance(Rule(float, 0).check("x", 3), float)
    assert Rule(list).check("x", ["a", "b"]) == ("a", "b")
    assert Rule(int, 1, 9).check("x", 9) == 9
    assert Rule(str, choices=("a", "b")).check("x", "b") == "b"
    assert Rule(str, choices=("a", "b"), aliases={"First": "a"}).check("x", "First") == "a"


def test_the_case_of_a_choice_does_not_matter() -> None:
    rule = Rule(str, choices=("nf4", "DPM"), aliases={"First": "nf4"})
    assert [rule.check("x", text) for text in ("NF4", "dpm", "FIRST")] == ["nf4", "DPM", "nf4"]


@pytest.mark.parametrize(
    ("rule", "text", "value"),
    [
        (Rule(int), "12", 12),
        (Rule(float), "1e-3", 0.001),
        (Rule(bool), "ON", True),
        (Rule(bool), "no", False),
        (Rule(list), "a, b", ["a", "b"]),
        (Rule(str), " a", " a"),
        (Rule(float, unit="x"), "3x", 3.0),
        (Rule(float, unit="x"), "2.5", 2.5),
    ],
)
def test_text_spells_a_value(rule: Rule, text: str, value: Any) -> None:
    assert rule.parse("x", text) == value


@pytest.mark.parametrize("rule", [Rule(int), Rule(float), Rule(bool)])
def test_text_that_spells_no_value_is_named(rule: Rule) -> None:
    with pytest.raises(SettingError, match=r"x is 'many'; give"):
        rule.parse("x", "many")
