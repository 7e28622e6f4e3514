"""What was measured is found again after a kill at any time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from h2gen.errors import OutputError
from h2gen.evaluation.tune.measurement_log import MeasurementLog, open_log, open_shared_log
from h2gen.models import resolve
from h2gen.models.load_options import LoadOptions
from h2gen.settings.profiles import ProfileKey
from h2gen.settings.resolve import request_from


def never() -> None:
    raise AssertionError("it was measured already")


def test_a_value_is_made_once_and_found_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    with MeasurementLog(path, {"model": "x"}) as book:
        assert book.get("one", lambda: {"ssim": 0.1 + 0.2}) == {"ssim": 0.1 + 0.2}
        assert book.get("one", never) == {"ssim": 0.1 + 0.2}
    with MeasurementLog(path, {"model": "x"}) as book:
        assert book.get("one", never) == {"ssim": 0.1 + 0.2}
        assert book.recall("two") is None and len(book) == 1


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_line_that_a_kill_cut_off_is_measured_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    with MeasurementLog(path, {}) as book:
        book.get("one", lambda: 1)
        book.get("two", lambda: [2.5, 2.5])
    path.write_bytes(path.read_bytes()[:-cut])
    for _ in range(2):
        with MeasurementLog(path, {}) as book:
            assert book.get("one", never) == 1
            assert book.get("two", lambda: [2.5, 2.5]) == [2.5, 2.5]


def test_what_holds_for_something_else_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with MeasurementLog(path, {"model": "x"}) as book:
        book.get("one", lambda: 1)
    with MeasurementLog(path, {"model": "y"}) as book:
        assert book.get("one", lambda: 2) == 2
    path.write_text("no JSON\n")
    with MeasurementLog(path, {"model": "y"}) as book:
        assert book.get("one", lambda: 3) == 3


def test_two_at_once_are_refused_and_a_finished_one_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with MeasurementLog(path, {}) as book:
        with pytest.raises(OutputError, match="Another process"), MeasurementLog(path, {}):
            pass
        book.remove()
    assert not path.exists()


def test_several_processes_may_share_a_log(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with (
        MeasurementLog(path, {"model": "x"}, shared=True) as one,
        MeasurementLog(path, {"model": "x"}, shared=True) as two,
    ):
        one.put("first", 1)
        two.put("second", [2])
        one.put("first", 3)
    with MeasurementLog(path, {"model": "x"}, shared=True) as book:
        assert (book.recall("first"), book.recall("second"), len(book)) == (3, [2], 2)


def test_a_shared_log_is_never_discarded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with MeasurementLog(path, {"model": "x", "steps": 4}, shared=True) as book:
        book.put("one", 1)
    before = path.read_bytes()
    other = MeasurementLog(path, {"model": "x", "steps": 5}, shared=True)
    with (
        pytest.raises(OutputError, match="under other conditions \\(steps\\), which cannot be mixed"),
        other,
    ):
        pass
    assert path.read_bytes() == before
    path.write_text("my notes\n")
    with pytest.raises(OutputError, match="is not a measurement log; give another file"), other:
        pass
    assert path.read_text() == "my notes\n"
    path.write_text("")
    with other:
        other.put("one", 2)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("kept", [0, 1, 20, 30])
def test_a_shared_log_whose_header_was_cut_off_begins_anew(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.jsonl"
    with MeasurementLog(path, {"model": "x"}, shared=True):
        pass
    path.write_bytes(path.read_bytes()[:kept])
    with MeasurementLog(path, {"model": "x"}, shared=True) as book:
        assert book.get("one", lambda: 1) == 1
    with MeasurementLog(path, {"model": "x"}, shared=True) as book:
        assert book.get("one", never) == 1


def test_a_file_of_another_kind_is_refused_even_if_it_is_short(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{mine")
    with pytest.raises(OutputError, match="is not a measurement log"), MeasurementLog(path, {}, shared=True):
        pass
    assert path.read_text() == "{mine"


@pytest.mark.parametrize("opened", [open_log, open_shared_log])
def test_measurements_of_a_model_loaded_otherwise_are_not_mixed_with_others(opened: Any) -> None:
    settings = request_from("-", [("option", {"seed": 1})]).settings
    key = ProfileKey("tiny", "ab" * 32, 28, 128, 128, "plain")

    def log(**options: Any) -> Any:
        session = SimpleNamespace(checkpoint=resolve("tiny"), device="cpu", dtype=torch.float32, offload="none")
        load = LoadOptions(**options)
        named = [load.loading] if opened is open_log else []
        return opened(key, SimpleNamespace(**vars(session), options=load), settings, *named)

    for options in ({}, {"quantize": "int8"}, {"quantize_text": "int8"}, {"compile": True}):
        with log(**options) as book:
            assert len(book) == 0
            book.put("one", 1)
    with log() as book:
        assert len(book) == 1
