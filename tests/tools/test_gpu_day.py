"""The command for a GPU's day, on the CPU: every part to its last line, and parts that go wrong."""

from __future__ import annotations

import errno
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

from tests.cli.programs import wait_for
from tools import gpu_day
from tools.gpu.process import Part, Result, run

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


def assert_ends(pid: int) -> None:
    """Wait for a process that was killed; a dead one may still wait for its new parent to take note."""

    def ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_for(ended)


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
    assert_shares_of_h2gens_step(offload)
    assert (tmp_path / "results.md").read_text().count("\n## ") == len(parts)


def assert_shares_of_h2gens_step(found: dict[str, Any]) -> None:
    base = found["h2gen: full step, no cache"]["value"]
    steps = [each for name, each in found.items() if "full step, no cache" in name or ", in a plan: " in name]
    assert len(steps) >= 3 and all(each["share"] == each["value"] / base for each in steps)


@pytest.mark.slow
def test_shares_of_offloading_are_of_h2gens_step_even_if_its_plan_fails(tmp_path: Path) -> None:
    names = ("offload_with_broken_plans", "offload_with_a_broken_step")
    assert gpu_day.measure([part(name) for name in names], tmp_path, small=True, total=3600) == 1
    found = figures(tmp_path, names[0])
    assert found["h2gen, in a plan"]["value"] == "failed: ValueError: no such plan"
    assert_shares_of_h2gens_step(found)
    found = figures(tmp_path, names[1])
    assert found["h2gen"]["value"] == "failed: ValueError: no such step"
    assert found["h2gen, nothing fetched ahead: full step, no cache"]["value"] > 0
    assert all(each["share"] is None for each in found.values())


OTHERS = ("FirstBlockCache, its check and the plan's decision", "cache-dit, static mask")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the tests that are skipped without a GPU")
def test_the_tests_for_gpus_are_found_and_run(tmp_path: Path) -> None:
    assert gpu_day.measure(unhurried(["tests"]), tmp_path, small=True, total=3600) == 0
    assert "no aims judged" in (tmp_path / "results.md").read_text()
    found = figures(tmp_path, "tests")
    assert found["failed"]["value"] == "nothing ran: all tests were skipped"
    assert found["files"]["value"] >= 3
    assert found["tests"]["value"] == found["skipped"]["value"] >= 12


@pytest.mark.slow
def test_parts_that_go_wrong_keep_their_figures_and_stop_no_other(tmp_path: Path) -> None:
    names = ("fails", "dies", "is_killed", "fails_here_and_there", "no_such_part", "hangs", "works")
    parts = [part(name, limit=10 if name == "hangs" else 600) for name in names]
    assert gpu_day.measure(parts, tmp_path, small=True, total=3600) == 1
    found = results(tmp_path)
    assert [found[each.name]["status"] for each in parts] == [*["failed"] * 5, "killed", "done"]
    assert all(found[name]["figures"][0]["name"] == "before" for name in ("fails", "dies", "is_killed", "hangs"))
    assert found["fails"]["error"][-1] == "ValueError: no such kernel"
    assert found["dies"]["error"][-2:] == ["about to die", "The process ended with status 3."]
    assert found["is_killed"]["error"][-1] == "The process was ended by signal 9 (Killed)."
    first, after = found["fails_here_and_there"]["figures"]
    assert first["value"] == "failed: ValueError: no such kernel" and after["name"] == "after"
    assert found["fails_here_and_there"]["error"] == ["Failed: first. See log.txt."]
    assert "no_such_part" in found["no_such_part"]["error"][-1]
    assert found["hangs"]["error"][-2:] == ["waiting for what never comes", "Killed at its limit of 10 s."]
    assert_ends(figures(tmp_path, "hangs")["child"]["value"])
    text = (tmp_path / "results.md").read_text()
    assert "2 of 3 aims met; not done: fails (failed), dies (failed), " in text
    assert "| share | 0.2 % |  | at most 0.3 % | met |" in text
    assert "| speed-up | 0.9 x |  | at least 0.97 x | missed |" in text
    assert "| slow | 2 s |  | at most 1 s | not judged |" in text
    assert "## hangs (killed at its limit)" in text


def test_a_part_is_redone_among_the_results_of_the_others(tmp_path: Path) -> None:
    gpu_day.measure([part("fails"), part("works")], tmp_path, small=True, total=3600)
    kept = results(tmp_path)["works"]
    again = replace(part("fails"), function=part("works").function)
    assert gpu_day.measure([again], tmp_path, True, 3600, gpu_day.earlier(tmp_path, small=True)) == 0
    found = results(tmp_path)
    assert list(found) == ["fails", "works"] and found["works"] == kept
    assert found["fails"]["status"] == "done"
    assert "not done" not in (tmp_path / "results.md").read_text()


def command(folder: Path, parts: str, **packages: str) -> subprocess.CompletedProcess[str]:
    """Run the command on the CPU, where packages do this when they are imported."""
    for name, line in packages.items():
        package = folder / "packages" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(line)
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu_day.py"), str(folder), "--small", "--parts", parts],
        env={**os.environ, "PYTHONPATH": f"{folder / 'packages'}:{ROOT}"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_broken_package_fails_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    broken = "raise ImportError('undefined symbol')"
    done = command(tmp_path, "fp8,others", torchao=broken, cache_dit=broken)
    assert (done.returncode, done.stderr) == (1, "")
    assert results(tmp_path)["fp8"]["error"][-1] == "ImportError: undefined symbol"
    others = figures(tmp_path, "others")
    assert others[f"ultra: {OTHERS[0]}: ideal, from the blocks that run"]["value"] == 8 / 6
    assert others[f"ultra: {OTHERS[1]}"]["value"] == "failed: ImportError: undefined symbol"


def test_a_process_that_does_not_start_does_not_keep_the_next_part_from_it(tmp_path: Path) -> None:
    done = command(tmp_path, "eager,known", torch="import os; os._exit(3)")
    assert done.returncode == 1, done.stderr
    assert [each["status"] for each in results(tmp_path).values()] == ["failed", "failed"]
    assert results(tmp_path)["known"]["error"][-1].startswith("The process did not start: ")


@pytest.mark.parametrize(
    "name, status, error",
    [
        ("works", "done", ""),
        ("is_killed", "failed", "The process was ended by signal 9 (Killed)."),
        ("no_such_part", "failed", "no_such_part"),
    ],
)
def test_on_a_gpu_too_a_part_may_go_wrong(name: str, status: str, error: str, tmp_path: Path) -> None:
    """There, processes are started in another way."""
    written: list[Result] = []
    result = run(part(name), small=False, limit=600, log=tmp_path / "log.txt", changed=written.append)
    assert written[0] is result and result.status == status
    assert (error in result.error[-1]) if error else not result.error


def test_results_that_cannot_be_written_end_the_part_and_are_no_fault_of_its_process(tmp_path: Path) -> None:
    written: list[Result] = []

    def changed(result: Result) -> None:
        written.append(result)
        if len(result.figures) == 2 and result.status == "running":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(part("hangs"), small=True, limit=600, log=tmp_path / "log.txt", changed=changed)
    assert (written[-1].status, written[-1].error[-1]) == ("failed", "Stopped with the whole run.")
    assert_ends(int(written[-1].figures[1].value))


def test_results_that_cannot_be_written_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json.part").mkdir()  # where they are written first
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", str(tmp_path), "--small", "--parts", "eager"])
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"{tmp_path} could not hold all results (Is a directory); give another folder.\n"


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path: Path) -> None:
    assert gpu_day.measure([part("works")], tmp_path, small=True, total=0) == 1
    assert results(tmp_path)["works"]["error"] == ["No time was left for it."]


def test_all_parts_together_take_less_than_eight_minutes() -> None:
    assert sum(each.limit for each in gpu_day.PARTS) <= gpu_day.TOTAL < 480


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--small", "--parts", "eager,warp"], "There is no part 'warp'; choose from eager, compiled"),
        (["--small"], "holds results already; give another folder, or --parts NAMES to redo some."),
        (["--small", "--parts", "eager"], "holds results already, of device X, not CPU, a tiny model"),
        (["--small", "--parts", "known"], "is not a file of this command; give another folder."),
        (["--small", "--parts", "others"], "cannot hold the results (File exists); give another folder."),
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
    if "exists" in line:
        folder.touch()
    elif "of this command" in line or "already" in line:
        folder.mkdir()
        text = '{"machine": {"device": "X"}, "parts": []}' if "already" in line else "{}"
        (folder / "results.json").write_text(text)
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
