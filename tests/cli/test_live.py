"""The live table at every size of terminal."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text

from h2gen.cache import CacheConfig, Outcome, StageRecord, StepRecord
from h2gen.cache.outcome_words import outcome_of
from h2gen.cache.summary import summarize_steps
from h2gen.cli.views import preview
from h2gen.cli.views.live_table import LiveTable, columns_for, counts, error_cell, stage_cell, steps_table
from h2gen.cli.views.preview import TerminalPicture, half_blocks

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


IMAGE = Image.linear_gradient("L").convert("RGB").resize((64, 48))


def with_preview(width: int, height: int, image: Image.Image = IMAGE) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    picture = TerminalPicture()
    table = LiveTable(console, [Text("a cat"), Text("facts")], CACHE, 50, contexts=False, picture=picture)
    for step in range(30):
        table.on_step(record(step, ALL))
    table.show(image)
    return show(table.render(), width, height)


@pytest.mark.parametrize("height", [12, 16, 24, 50])
@pytest.mark.parametrize("width", [30, 50, 63, 64, 80, 120, 250])
@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (32, 96)], ids=str)
def test_a_preview_leaves_room_for_the_table_at_any_size(width: int, height: int, shape: tuple[int, int]) -> None:
    lines = with_preview(width, height, IMAGE.resize(shape))
    assert len(lines) < height
    assert all(len(line.rstrip()) <= width for line in lines)
    assert any("all reused" in line and line.split()[0] == "30" for line in lines)
    assert "30/50" in "\n".join(lines)
    assert ("▀" in "\n".join(lines)) == (width >= 64 or height >= 24)


def test_a_preview_stands_beside_the_table_or_above_it_where_that_is_narrow() -> None:
    wide, narrow = with_preview(100, 24), with_preview(50, 24)
    assert any("▀" in line and "all reused" in line for line in wide)
    assert not any("▀" in line and "all reused" in line for line in narrow)
    first = [next(n for n, line in enumerate(narrow) if word in line) for word in ("▀", "outcome")]
    assert first == sorted(first)


def test_half_blocks_are_two_pixels_each() -> None:
    image = Image.new("RGB", (2, 2), (200, 0, 0))
    image.paste((0, 0, 100), (0, 1, 2, 2))
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="truecolor", width=10).print(half_blocks(image, 2, 1))
    assert out.getvalue().count("38;2;200;0;0;48;2;0;0;100m▀") in (1, 2)
    picture = TerminalPicture()
    picture.show(image.resize((64, 48)))
    assert picture.cells(40, 40) == (40, 15)
    assert picture.cells(40, 6) == (16, 6)


@pytest.mark.parametrize("kind", ["TGPImage", "SixelImage"])
def test_where_a_terminal_shows_pixels_they_take_the_same_cells(
    kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    renderable = getattr(pytest.importorskip("textual_image.renderable"), kind)
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    blocks = with_preview(100, 24)
    monkeypatch.setattr(preview, "pixels_of_terminal", lambda: renderable)
    lines = with_preview(100, 24)
    if kind == "TGPImage":
        sent = sys.__stdout__.getvalue()
        assert "\x1b_Gi=" in sent and "f=100" in sent
        assert [line.count("\U0010eeee") for line in lines] == [line.count("▀") for line in blocks]
    else:
        assert "\x1bP" in "".join(lines)


def test_an_image_that_is_not_shown_any_more_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []

    class Pixels:
        def __init__(self, *_: object) -> None:
            self.cleanup = lambda: freed.append("one")

    monkeypatch.setattr(preview, "pixels_of_terminal", lambda: Pixels)
    picture = TerminalPicture()
    picture.show(IMAGE)
    assert picture.render(8, 3) is picture.render(8, 3) and not freed
    picture.show(IMAGE)
    assert freed == ["one"]
