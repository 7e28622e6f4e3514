"""The live table at every size of terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.console import Console
from rich.text import Text

from h2gen.cache import CacheConfig, Outcome, StageRecord, StepRecord
from h2gen.cache.outcome_words import outcome_of
from h2gen.cache.summary import summarize_steps
from h2gen.cli.views.live_table import LiveTable, columns_for, counts, error_cell, stage_cell, steps_table

CACHE = CacheConfig(0.15, 0.22)
FULL = StageRecord(0.31, Outcome.COMPUTED), StageRecord(0.41, Outcome.COMPUTED), 57
DETAIL = StageRecord(0.31, Outcome.COMPUTED), StageRecord(0.11, Outcome.REUSED), 20
ALL = StageRecord(0.08, Outcome.REUSED), StageRecord(None, Outcome.FORCED), 2
STRUCTURE = StageRecord(0.08, Outcome.REUSED), StageRecord(0.41, Outcome.COMPUTED), 39
SKIPPED = StageRecord(None, Outcome.SKIPPED), StageRecord(None, Outcome.SKIPPED), 0
AGED = StageRecord(0.31, Outcome.COMPUTED), StageRecord(None, Outcome.GUARDED), 57
GUARDED = StageRecord(None, Outcome.GUARDED), StageRecord(None, Outcome.GUARDED), 57


def record(step: int, kind: tuple[StageRecord, StageRecord, int] = FULL, context: str = "cond") -> StepRecord:
    structure, detail, ran = kind
    return StepRecord(0, step, context, 1000 - step, 1 - step / 1000, structure, detail, ran, 57, 0.0123)


def show(renderable: object, width: int, height: int = 40) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(renderable)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (FULL, "full"),
        (DETAIL, "detail reused"),
        (ALL, "all reused"),
        (GUARDED, "guarded"),
        (AGED, "full"),
        (STRUCTURE, "structure reused"),
        (SKIPPED, "skipped"),
    ],
)
def test_every_outcome_is_a_word_that_can_be_read_without_colour(
    kind: tuple[StageRecord, StageRecord, int], word: str
) -> None:
    assert outcome_of(record(0, kind)) == word


def test_a_change_is_shown_against_its_threshold() -> None:
    assert stage_cell(StageRecord(0.0814, Outcome.REUSED), 0.15).plain == "0.081 < 0.15"
    assert stage_cell(StageRecord(0.31, Outcome.COMPUTED), 0.15).plain == "0.310 ≥ 0.15"
    assert stage_cell(StageRecord(0.1498, Outcome.REUSED), 0.15).plain == "0.149 < 0.15"
    assert stage_cell(StageRecord(0.1503, Outcome.COMPUTED), 0.15).plain == "0.150 ≥ 0.15"
    assert stage_cell(StageRecord(None, Outcome.COMPUTED), 0.15).plain == "first"
    assert stage_cell(StageRecord(None, Outcome.COMPUTED), 0).plain == "off"
    assert stage_cell(StageRecord(None, Outcome.FORCED), 0.15).plain == "forced"
    assert stage_cell(StageRecord(None, Outcome.SKIPPED), 0.15).plain == "skipped"
    assert stage_cell(StageRecord(None, Outcome.COMPUTED), 0.15, planned=True).plain == "computed"
    assert stage_cell(StageRecord(None, Outcome.REUSED), 0.15, planned=True).plain == "reused"


def test_only_outcomes_that_happened_are_counted() -> None:
    paper = summarize_steps([record(0), record(1, DETAIL), record(2, ALL)])
    assert counts(paper).endswith("1 full, 1 detail reused, 1 all reused")
    beyond = summarize_steps([record(0), record(1, STRUCTURE), record(2, SKIPPED), record(3, SKIPPED)])
    assert counts(beyond).endswith("1 full, 1 structure reused, 2 skipped")
    assert (paper + beyond).steps == 7 and (paper + beyond).skipped == 2
    assert str(beyond).endswith("; 4 passes: 1 full, 1 structure reused, 2 skipped")


@pytest.mark.parametrize("width", [20, 30, 40, 50, 59, 60, 75, 80, 83, 100, 200])
@pytest.mark.parametrize("contexts", [False, True])
def test_a_row_is_one_line_at_any_width(width: int, contexts: bool) -> None:
    records = [record(0), record(1, DETAIL, "uncond"), record(998, ALL)]
    lines = show(steps_table(records, CACHE, width, contexts), width)
    assert len(lines) == 4
    assert all(len(line.rstrip()) <= width for line in lines)
    if width >= 30:
        assert "detail reused" in lines[2]


def test_the_narrower_the_terminal_the_fewer_the_columns_and_the_outcome_stays() -> None:
    names = [[column[0] for column in columns_for(width, CACHE, True)] for width in range(20, 120)]
    assert all(len(one) <= len(two) for one, two in pairwise(names))
    assert all("outcome" in columns for columns in names)
    assert names[-1] == ["step", "pass", "sigma", "structure", "detail", "outcome", "blocks", "ms"]


def test_what_a_tolerance_decides_by_stands_in_the_place_of_both_stages() -> None:
    alone, both = CacheConfig(0, 0, tolerance=0.002), CacheConfig(0.1, 0.2, tolerance=0.002)
    assert [column[0] for column in columns_for(100, alone, False)] == [
        "step", "sigma", "error", "outcome", "blocks", "ms",
    ]  # fmt: skip
    assert columns_for(100, replace(alone, plan="FFSF"), False) == columns_for(100, alone, False)
    assert {"error", "structure", "detail"} <= {column[0] for column in columns_for(100, both, True)}
    assert "error" in [column[0] for column in columns_for(45, both, True)]
    assert error_cell(replace(record(6), error=0.00204), 0.002).plain == "0.0021 > 0.002"
    assert error_cell(replace(record(5, SKIPPED), error=0.002), 0.002).plain == "0.0020 ≤ 0.002"
    rows = [replace(record(5, SKIPPED), error=0.00131), replace(record(6), error=0.0025), record(7)]
    lines = show(steps_table(rows, alone, 80, False), 80)
    assert all(cell in line for cell, line in zip(("0.0013 ≤ 0.002", "0.0025 > 0.002", " - "), lines[1:], strict=True))


@pytest.mark.parametrize("height", [10, 14, 24])
def test_when_the_rows_do_not_fit_the_last_ones_are_shown(height: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=height, force_terminal=True, color_system=None)
    table = LiveTable(console, [Text("a cat"), Text("facts")], CACHE, 50, contexts=False)
    for step in range(30):
        table.on_step(record(step, ALL))
    lines = show(table.render(), 100, height)
    assert len(lines) < height
    assert any(line.split()[:1] == ["30"] for line in lines)
    assert not any(line.split()[:1] == ["1"] for line in lines)
    assert "30/50" in "\n".join(lines)
    assert "30 all reused" in lines[-1]
    assert "28.50x" in lines[-1]


@pytest.mark.parametrize("width", [36, 50, 80])
def test_the_speed_up_and_the_outcomes_are_whole_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=20, force_terminal=True, color_system=None)
    table = LiveTable(console, [Text("a cat"), Text("facts")], CACHE, 50, contexts=True)
    for step in range(30):
        table.on_step(record(step, ALL))
    lines = show(table.render(), width, 20)
    assert len(lines) < 20
    assert "est. 28.50x; passes: 30 all reused" in " ".join(" ".join(lines).split())


def test_totals_are_against_the_uncached_run_that_was_asked_for() -> None:
    console = Console(file=io.StringIO(), width=100, height=20, force_terminal=True, color_system=None)
    table = LiveTable(console, [Text("a cat")], CACHE, 9, True, reference=5 / 9, reference_steps=5)
    for step in range(9):
        table.on_step(record(step, SKIPPED if step % 3 else FULL))
    words = " ".join(" ".join(show(table.render(), 100, 20)).split())
    assert "60% of the blocks of 5 steps, est. 1.67x; passes: 3 full" in words


def test_it_draws_while_it_lives_and_ends_with_everything_on_screen() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=40, force_terminal=True, color_system=None)
    with LiveTable(console, [Text("a [red]cat[/]")], CACHE, 3, contexts=False) as table:
        for step in range(3):
            table.on_step(record(step))
    assert "a [red]cat[/]" in out.getvalue()
    assert "3/3" in out.getvalue()
    assert "done" in out.getvalue()
