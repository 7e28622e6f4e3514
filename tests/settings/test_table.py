"""The table of settings: every place where a setting can be given follows from its row."""

from __future__ import annotations

import re
from dataclasses import asdict, fields

import pytest

from h2gen.batches.prompts import KEYS, RUN_WIDE
from h2gen.cache.config import RULES, CacheConfig
from h2gen.cli.app import run
from h2gen.cli.commands import COMMANDS
from h2gen.models.load_options import LOAD_OPTIONS
from h2gen.settings.resolve import CACHE, Request
from h2gen.settings.table import BY_NAME, SECTIONS, TABLE
from h2gen.settings.user_defaults import USER_DEFAULTS
from h2gen.settings.values import NOT_SETTINGS, Settings


def test_names_are_given_once() -> None:
    assert len(BY_NAME) == len(TABLE)


def test_the_rows_in_a_picture_are_the_fields_of_its_settings() -> None:
    own = {each.name for each in fields(Settings)} - {"cache", *NOT_SETTINGS}
    cached = tuple(each.name for each in fields(CacheConfig))
    assert {row.name for row in TABLE if row.in_picture} == own | set(cached)
    assert CACHE == cached == tuple(RULES)


def test_defaults_are_those_of_the_classes() -> None:
    defaults = asdict(CacheConfig()) | {each.name: each.default for each in fields(Settings)}
    for name, default in defaults.items():
        if name not in ("cache", *NOT_SETTINGS) and BY_NAME[name].default is not None:
            assert BY_NAME[name].default == default, name


def test_defaults_keep_their_own_rules() -> None:
    for row in TABLE:
        if row.default is not None:
            assert row.check(row.default) == row.default, row.name


def test_a_prompt_file_can_set_what_determines_one_picture_and_not_the_run() -> None:
    assert not set(KEYS) & set(RUN_WIDE)
    assert set(RUN_WIDE) == {"model", "base", "out", "format", "attention", *LOAD_OPTIONS} - {"devices"}
    assert {name for name in USER_DEFAULTS if name not in RUN_WIDE} <= set(KEYS)
    assert {"out", "format"} <= {each.name for each in fields(Request)}
    assert set(LOAD_OPTIONS) <= {row.name for row in TABLE}


@pytest.mark.parametrize("command", ["generate", *COMMANDS])
def test_every_command_has_the_options_of_its_rows_and_their_help_stands_on_one_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in TABLE:
        if command in row.commands:
            place = next(n for n, line in enumerate(lines) if re.match(rf"  (-\S+, )*{row.option}[ ,]", line))
            text = lines[place]
            own = command == "compare" and row.name in ("tau1", "tau2", "tolerance")
            assert own or row.helps.get(command, row.help) in text, text
            if row.otherwise and row.help in text and not row.of_cache:
                default = f"[default: {row.otherwise_in(command)}]"
                assert default in " ".join("".join(lines[place : place + 2]).split()), text


def test_the_help_has_a_section_for_every_row() -> None:
    assert {row.section for row in TABLE} <= set(SECTIONS)
