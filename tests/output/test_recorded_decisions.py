"""Decisions are read from a trace file; any other file is refused in one line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from h2gen.cli.app import run
from h2gen.errors import SettingError
from h2gen.output.recorded_decisions import read_decisions
from h2gen.settings.values import OFF


def step(structure: str, detail: str, context: str = "cond") -> str:
    stages = {name: {"change": None, "outcome": word} for name, word in (("structure", structure), ("detail", detail))}
    return json.dumps({"step": 0, "context": context, **stages})


FULL, GUARDED = ("computed", "computed"), ("guarded", "guarded")
REUSED, DETAIL, STRUCTURE, SKIPPED = (
    ("reused", "forced"),
    ("computed", "reused"),
    ("reused", "guarded"),
    ("skipped", "skipped"),
)


SUMMARY = "\n" + json.dumps({"summary": {"steps": 1}})


def trace(folder: Path, *lines: str, settings: Any = None) -> Path:
    path = folder / "t.jsonl"
    header = json.dumps({"h2gen": "1", "settings": {"steps": len(lines)} if settings is None else settings})
    path.write_text("\n".join([header, *lines, json.dumps({"summary": {"steps": 1}})]) + "\n")
    return path


def test_each_step_becomes_its_letter(tmp_path: Path) -> None:
    lines = [step(*outcome) for outcome in (FULL, GUARDED, REUSED, DETAIL, STRUCTURE, SKIPPED)]
    found = read_decisions(trace(tmp_path, *lines)).settings
    assert (found["plan"], found["steps"]) == ("FFRDCS", 6)


def test_what_its_header_does_not_say_is_as_it_was_before_there_was_a_choice(tmp_path: Path) -> None:
    found = read_decisions(trace(tmp_path, step(*FULL), settings={"steps": 1, "tau1": 0.3})).settings
    assert found == {**asdict(OFF), "plan": "F", "steps": 1, "solver": "own"}
    assert found["forecast"] == 0


def test_passes_that_decided_otherwise_have_a_part_each(tmp_path: Path) -> None:
    same = [step(*outcome, context) for outcome in (FULL, REUSED) for context in ("cond", "uncond")]
    assert read_decisions(trace(tmp_path, *same)).settings["plan"] == "FR"
    other = [*same[:3], step(*DETAIL, "uncond")]
    assert read_decisions(trace(tmp_path, *other)).settings["plan"] == "FR/FD"


def test_the_forecast_comes_along(tmp_path: Path) -> None:
    path = trace(tmp_path, step(*FULL), settings={"steps": 1, "forecast": 1, "tau1": 0.3, "solver": "unipc"})
    assert read_decisions(path).settings == {**asdict(OFF), "plan": "F", "forecast": 1, "steps": 1, "solver": "unipc"}


@pytest.mark.parametrize("cut", [0, 1, 30, 60])
def test_a_trace_of_a_run_that_was_stopped_is_no_whole_one(tmp_path: Path, cut: int) -> None:
    path = trace(tmp_path, step(*FULL), step(*REUSED), step(*REUSED))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b'{"summary"') - cut])
    with pytest.raises(SettingError, match=r"t\.jsonl' is incomplete"):
        read_decisions(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no steps"),
        ("{}", "has no steps"),
        ("F\n", "line 1 is not a step"),
        ("[1]\n{", "line 2 is not a step"),
        ('{"step": 1}', "line 1 is not a step"),
        ('{"settings": 3}', "line 1 is not a step"),
        (step("computed", "eaten"), "line 1 is not a step"),
        ("[" * 100_000, "line 1 is not a step"),
        ("\udcff", "line 1 is not a step"),
        (step(*FULL), "is incomplete"),
        (step(*REUSED) + SUMMARY, "must be F"),
        (
            step(*FULL) + "\n" + step(*FULL) + "\n" + step(*FULL, "uncond") + SUMMARY,
            "2 steps for one pass and 1 for another",
        ),
        (" " * (16 * 2**20 + 1), "larger than 16 MiB"),
    ],
    ids=range(13),
)
def test_what_is_no_trace_is_told_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingError, match=words) as error:
        read_decisions(path)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 300


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"gone\.jsonl.*No such file"):
        read_decisions(tmp_path / "gone.jsonl")


@pytest.mark.parametrize(
    ("contexts", "cfg", "told"),
    [
        (("cond", "uncond"), 1.0, r"records two passes per step, and .* --cfg 1 has one; give --cfg above 1\.$"),
        (("cond",), 3.0, r"records one pass per step, and .* --cfg 3 has two; give --cfg 1\.$"),
    ],
)
def test_decisions_of_other_passes_are_refused(
    tmp_path: Path, contexts: tuple[str, ...], cfg: float, told: str
) -> None:
    path = trace(tmp_path, *(step(*outcome, context) for outcome in (FULL, REUSED) for context in contexts))
    with pytest.raises(SettingError, match=told):
        read_decisions(path).check_passes(cfg)
    read_decisions(path).check_passes(4.0 - cfg)
    assert run(["a cat", "--replay-decisions", str(path), "--cfg", str(cfg), "--dry-run"]) == 2
