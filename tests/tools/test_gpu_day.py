"""The command for a GPU's day, on the CPU: every part to its last line, and parts that go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tools import gpu_day
from tools.gpu.process import Part

pytestmark = pytest.mark.posix
ROOT = Path(gpu_day.__file__).resolve().parents[1]


def part(name: str, limit: float = 600) -> Part:
    return Part(name, f"what {name}", f"tests.tools.gpu_parts:{name}", limit)


def unhurried(names: Sequence[str]) -> list[Part]:
    """Parts with time enough for a busy machine."""
    return [replace(each, limit=600) for each in gpu_day.PARTS if each.name in names]


def results(folder: Path) -> dict[str, Any]:
    whole = json.loads((folder / "results.json").read_text())
    return {each["name"]: each for each in whole["parts"]}


def figures(folder: Path, name: str) -> dict[str, Any]:
    return {figure["name"]: figure for figure in results(folder)[name]["figures"]}


def runs(pid: int) -> bool:
    """Whether a process runs; a dead one may still wait for its new parent to take note."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_every_part_runs_to_its_end_on_a_small_model(tmp_path: Path) -> None:
    parts = unhurried(
        [each.name for each in gpu_day.PARTS if each.name not in ("compiled", "tests")]
    )  # fp8 compiles too
    status = gpu_day.measure(parts, tmp_path, small=True, total=3600)
    log = (tmp_path / "log.txt").read_text()
    assert [(each["name"], each["status"], each["error"]) for each in results(tmp_path).values()] == [
        (each.name, "done", []) for each in parts
    ], log[-3000:]
    assert status == 0
    eager = figures(tmp_path, "eager")
    assert eager["the checks, of a full step"]["aim"] == "at most 0.3 %"
    assert eager["plan ultra, skipped: ideal, from the blocks that run"]["value"] == 8 / 5
    assert all(eager[f"in a plan: {name}"]["value"] > 0 for name in ("detail reused", "both forecast"))
    assert figures(tmp_path, "fp8")["graphs compiled again for the cache"]["met"]
    known = figures(tmp_path, "known")
    assert all(figure["met"] for name, figure in known.items() if "beyond those" in name)
    assert known["skipped: launches per step"]["value"] < known["no cache: launches per step"]["value"] / 2
    assert known["with both checks: waits per step"]["value"] > known["full: waits per step"]["value"]
    others = figures(tmp_path, "others")
    ideal = [others[f"fast: {name}: ideal, from the blocks that run"]["value"] for name in OTHERS]
    assert ideal[0] == ideal[1] == 8 / (7 + 1 / 3)  # both run one block of three where the plan skips
    offload = figures(tmp_path, "offload")
    assert offload["h2gen: blocks fetched by the plan FFSDRF"]["value"] == 3 * 3 + 2 + 2  # of three; D and R run two
    assert (tmp_path / "results.md").read_text().count("\n## ") == len(parts)


OTHERS = ("FirstBlockCache, its check and the plan's decision", "cache-dit, static mask")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the tests that are skipped without a GPU")
def test_the_tests_for_gpus_are_found_and_run(tmp_path: Path) -> None:
    assert gpu_day.measure(unhurried(["tests"]), tmp_path, small=True, total=3600) == 0
    found = figures(tmp_path, "tests")
    assert found["files"]["value"] >= 3
    assert found["tests"]["value"] == found["skipped"]["value"] >= 12


@pytest.mark.slow
def test_parts_that_go_wrong_keep_their_figures_and_stop_no_other(tmp_path: Path) -> None:
    parts = [part("fails"), part("dies"), part("hangs", limit=4), part("works")]
    assert gpu_day.measure(parts, tmp_path, small=True, total=3600) == 1
    found = results(tmp_path)
    assert [found[each.name]["status"] for each in parts] == ["failed", "failed", "killed", "done"]
    assert all(found[name]["figures"][0]["name"] == "before" for name in ("fails", "dies", "hangs"))
    assert found["fails"]["error"][-1] == "ValueError: no such kernel"
    assert found["dies"]["error"][-2:] == ["about to die", "The process ended with status 3."]
    assert found["hangs"]["error"][-2:] == ["waiting for what never comes", "Killed at its limit of 4 s."]
    assert not runs(figures(tmp_path, "hangs")["child"]["value"])
    text = (tmp_path / "results.md").read_text()
    assert "2 of 3 aims met" in text
    assert "| share | 0.2 % |  | at most 0.3 % | met |" in text
    assert "| speed-up | 0.9 x |  | at least 0.97 x | missed |" in text
    assert "## hangs (killed at its limit)" in text


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path: Path) -> None:
    assert gpu_day.measure([part("works")], tmp_path, small=True, total=0) == 1
    assert results(tmp_path)["works"]["error"] == ["No time was left for it."]


def test_all_parts_together_take_less_than_eight_minutes() -> None:
    assert sum(each.limit for each in gpu_day.PARTS) <= gpu_day.TOTAL < 480


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--small", "--parts", "eager,warp"], "There is no part 'warp'; choose from eager, compiled"),
        (["--small"], "holds results already; give another folder."),
        pytest.param(
            [],
            "No CUDA GPU here: this measures one. --small tests the command on the CPU.",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_run_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    if "already" in line:
        folder.mkdir()
        (folder / "results.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", str(folder), *arguments])
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and line in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_it_runs_where_h2gen_is_not_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(ROOT / "tools" / "gpu_day.py"), "--help"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "OUT_FOLDER" in done.stdout, done.stderr
