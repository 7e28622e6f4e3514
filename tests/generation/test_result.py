"""A result can be saved with its metadata, and shows itself in a notebook."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from h2gen.cli.app import run
from h2gen.models.peak_memory import PeakMemory, begin_peak, peak_memory
from h2gen.output.metadata import read_metadata
from h2gen.output.metadata_rows import metadata_rows
from h2gen.settings.table import FORMATS

QUICK: dict[str, Any] = {"seed": 7, "steps": 2, "cfg": 1.0}


@pytest.mark.parametrize("format", FORMATS)
def test_a_saved_result_says_how_it_was_made(tiny: Any, tmp_path: Path, format: str) -> None:
    result = tiny.generate("a cat", **QUICK)
    path = result.save(tmp_path / f"cat.{format}", sidecar=True)
    found = read_metadata(path)
    assert found.settings == result.settings and found.preset == "balanced"
    assert found.everything == result.metadata == read_metadata(path.with_suffix(".toml")).everything


def test_nothing_is_overwritten_unasked_and_a_folder_names_the_file(tiny: Any, tmp_path: Path) -> None:
    result = tiny.generate("a cat", **QUICK)
    saved = [result.save(tmp_path / "cat.png"), result.save(tmp_path / "cat.png"), result.save(tmp_path)]
    assert [path.name for path in saved] == ["cat.png", "cat-2.png", "a-cat-7.png"]
    assert result.save(tmp_path / "cat.png", overwrite=True) == saved[0]
    assert tiny.generate("a cat", out=tmp_path / "cat.png", overwrite=True, **QUICK).path == saved[0]


def test_a_replaced_picture_never_keeps_the_sidecar_of_the_old_one(tiny: Any, tmp_path: Path) -> None:
    path = tiny.generate("a cat", **QUICK).save(tmp_path / "cat.png", sidecar=True)
    tiny.generate("a dog", **QUICK).save(path, overwrite=True)
    assert read_metadata(path.with_suffix(".toml")).settings.prompt == "a dog"
    tiny.generate("a fox", **QUICK).save(path, overwrite=True, metadata=False)
    assert not path.with_suffix(".toml").exists()


def test_a_prompt_too_long_for_the_metadata_of_a_format_costs_no_picture(tiny: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    result = tiny.generate("a cat", **QUICK)
    long = replace(result, settings=replace(result.settings, prompt="x" * 70_000))
    with pytest.warns(UserWarning, match=r"too long for the metadata of a \.jpg; use png"):
        assert long.save(tmp_path / "cat.jpg").exists()
    assert long.save(tmp_path / "cat.jpg", metadata=False).exists()


def test_python_the_command_line_and_info_say_the_same(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny.generate("a cat", **QUICK).save("a.png")
    assert run(["info", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert run(["a cat", "--seed", "7", "--steps", "2", "--cfg", "1", "-o", "b.png", "--json"]) == 0
    typed = json.loads(capsys.readouterr().out)
    for each in (told, typed):
        for changing in ("path", "made", "seconds", "peak_memory"):
            del each[changing]
        del each["cache"]["seconds"]
    assert told == typed


def test_a_notebook_shows_the_picture(tiny: Any) -> None:
    result = tiny.generate("a cat", **QUICK)
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(result.image))
    assert len(repr(result)) < 1500


def test_a_trace_is_there_without_a_cache_too(tiny: Any) -> None:
    result = tiny.generate("a cat", cache=None, **QUICK)
    assert (result.trace.speedup, result.trace.steps, result.summary) == (1.0, [], None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bars(tiny: Any, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **given: Any) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    tiny.generate("a cat", **QUICK, **given)
    assert tiny.pipe._progress_bar_config == {"disable": True}
    return stream.getvalue()


def test_a_bar_is_shown_to_somebody_who_watches(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "2/2" in bars(tiny, monkeypatch, Terminal())
    assert "2/2" in bars(tiny, monkeypatch, io.StringIO(), progress=True)
    assert bars(tiny, monkeypatch, io.StringIO()) == bars(tiny, monkeypatch, Terminal(), progress=False) == ""
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert "2/2" in bars(tiny, monkeypatch, io.StringIO())


def test_the_peak_of_memory_is_recorded_and_shown_if_asked_for(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tiny.generate("a cat", **QUICK)
    peak = result.peak_memory
    assert peak.of == "resident" and peak.bytes > 10**8
    assert result.metadata["peak_memory"] == {"bytes": peak.bytes, "of": "resident"}
    assert dict(metadata_rows(result.metadata))["peak memory"].endswith(" GB resident in the whole process")
    for damaged in ({"bytes": "1", "of": "resident"}, {"bytes": 1, "of": "a lot"}, 3):
        assert "peak memory" not in dict(metadata_rows({**result.metadata, "peak_memory": damaged}))
    monkeypatch.chdir(tmp_path)
    for more, shown in (["-v"], True), ([], False):
        assert run(["a cat", "--steps", "1", "--no-cache", *more]) == 0
        assert ("Peak memory: " in capsys.readouterr().err) is shown


def test_on_a_gpu_the_peak_is_what_torch_had_allocated_since_the_picture_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, began = torch.device("cuda", 1), []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", began.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda where: 5 if where == device else 0)
    begin_peak(device)
    assert (began, peak_memory(device)) == ([device], PeakMemory(5, "allocated"))
    assert peak_memory(torch.device("mps")) is None
