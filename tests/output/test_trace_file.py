"""The trace file: lines as they come; a full disk ends the file but not the picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from h2gen.cache import Outcome, StageRecord, StepRecord, Summary
from h2gen.errors import OutputError
from h2gen.output.trace_file import TraceFile
from tests.locked import locked

FIRST = StageRecord(None, Outcome.COMPUTED)
STEP = StepRecord(0, 0, "cond", 1000.0, 1.0, FIRST, StageRecord(float("nan"), Outcome.COMPUTED), 57, 57, 0.1)


def test_each_line_is_there_as_soon_as_its_step_is(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.jsonl", {"prompt": "a c\u00e4t"})
    file.on_step(STEP)
    header, step = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert header["settings"] == {"prompt": "a c\u00e4t"}
    assert step["detail"] == {"change": None, "outcome": "computed"}
    file.close(Summary())
    assert "summary" in json.loads((tmp_path / "t.jsonl").read_text().splitlines()[-1])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_remembered_and_raises_nothing(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.jsonl", {})
    file._file.close()
    file._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - closed below
    file.on_step(STEP)
    file.on_step(STEP)
    file.close(Summary())
    assert file.error == "No space left on device"


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="it already exists"):
        TraceFile.check(tmp_path / "notes.txt")
    with pytest.raises(OutputError, match="Cannot write the trace"):
        TraceFile(tmp_path / "notes.txt", {})
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_its_folder_is_created_with_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "s" / "t.jsonl"
    TraceFile.check(path)
    assert os.listdir(tmp_path) == []
    TraceFile(path, {}).close(None)
    assert path.is_file()
    with pytest.raises(OutputError, match=r"t\.jsonl' is not a folder; give another"):
        TraceFile.check(path / "t.jsonl")


def test_an_old_trace_is_replaced_by_the_first_step_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("old\n" * 1000)
    TraceFile(path, {}, overwrite=True).close(None)
    file = TraceFile(path, {"prompt": "a cat"}, overwrite=True)
    file.restart()
    assert path.read_text() == "old\n" * 1000
    for _ in range(2):
        file.on_step(STEP)
        assert [sorted(json.loads(line))[0] for line in path.read_text().splitlines()] == ["blocks_run", "h2gen"][::-1]
        file.restart()
    file.close(Summary())
    header, summary = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["settings"] == {"prompt": "a cat"} and "summary" in summary
    with open(os.devnull, "rb") as before:
        TraceFile(Path(os.devnull), {}, overwrite=True).close(Summary())
        assert before.read() == b""


@pytest.mark.posix
def test_a_trace_in_a_folder_that_may_not_be_searched_or_with_too_long_a_name_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path) as folder, pytest.raises(OutputError, match="Permission denied; give another with --trace"):
        TraceFile.check(folder / "t.jsonl")
    for path, words in ((tmp_path / ("x" * 300), "too long"), (tmp_path / "a\0b", "null byte")):
        with pytest.raises(OutputError, match=words):
            TraceFile.check(path)
