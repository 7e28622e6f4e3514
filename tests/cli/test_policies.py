"""Policies and plans, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from h2gen.cache.policies.plan import OUTCOMES
from h2gen.cli.app import run
from h2gen.output.metadata import read_metadata
from tests.cli.programs import h2gen

QUICK = ["--steps", "6", "--cfg", "1", "--seed", "7", "--size", "64x64"]
POLICIES = ["--forecast", "1", "--tolerance", "0.01", "--budget", "--hierarchy", "checked", "--max-detail-age", "3"]
POLICIES += ["--pfs", "stable"]


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_plan_is_followed_and_written_down(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", *QUICK, "--plan", "f f r d s c", "--json", "--trace", "t.jsonl"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert made["settings"]["plan"] == "FFRDSC"
    cache = made["cache"]
    assert [cache[name] for name in ("full", "all_reused", "detail_reused", "skipped", "structure_reused")] == [
        2, 1, 1, 1, 1,
    ]  # fmt: skip
    assert "2 full, 1 detail reused, 1 structure reused, 1 all reused, 1 skipped" in err
    steps = [json.loads(line) for line in (here / "t.jsonl").read_text().splitlines()][1:-1]
    assert [(step["structure"]["outcome"], step["detail"]["outcome"]) for step in steps] == [
        OUTCOMES[letter] for letter in "FFRDSC"
    ]
    assert read_metadata(here / "a-cat-7.png").settings.cache.plan == "FFRDSC"
    assert run(["replay", "a-cat-7.png", "-o", "again.png", "-q"]) == 0
    assert np.array_equal(pixels(here / "again.png"), pixels(here / "a-cat-7.png"))
    assert run(["info", "a-cat-7.png"]) == 0
    shown = capsys.readouterr().out
    assert "FFRDSC" in shown and "1 skipped" in shown


def test_the_decisions_of_a_trace_make_the_same_picture_without_checks(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decided = ["--steps", "8", "--cfg", "3", "--seed", "7", "--size", "64x64", "--tau1", "0.6", "--tau2", "0.6"]
    decided += ["--preset", "paper", *POLICIES]
    assert run(["a cat", *decided, "--trace", "t.jsonl", "-o", "one.png", "-q"]) == 0
    again = ["--cfg", "3", "--seed", "7", "--size", "64x64", "--replay-decisions", "t.jsonl", "--trace", "u.jsonl"]
    assert run(["a cat", *again, "-o", "two.png", "-q"]) == 0
    assert np.array_equal(pixels(here / "one.png"), pixels(here / "two.png"))
    steps = [json.loads(line) for line in (here / "u.jsonl").read_text().splitlines()][1:-1]
    assert {step[stage]["change"] for step in steps for stage in ("structure", "detail")} == {None}
    assert {step["structure"]["outcome"] for step in steps} > {"computed"}
    assert run(["a dog", *again[:-2], "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["steps", "8", "trace"] in rows
    assert ["forecast", "1", "trace"] in rows


def test_what_a_plan_and_a_tolerance_decided_makes_the_same_picture_again(here: Path) -> None:
    both = ["--plan", "FSFSSSFF", "--tolerance", "0.02"]
    size = ["--cfg", "1", "--seed", "7", "--size", "64x64"]
    assert run(["a cat", "--steps", "8", *size, *both, "--trace", "t.jsonl", "-o", "one.png", "-q"]) == 0
    cache = read_metadata(here / "one.png").settings.cache
    assert (cache.plan, cache.tolerance) == ("FSFSSSFF", 0.02)
    assert run(["replay", "one.png", "-o", "two.png", "-q"]) == 0
    assert run(["a cat", *size, "--replay-decisions", "t.jsonl", "-o", "three.png", "-q"]) == 0
    decided = read_metadata(here / "three.png").settings.cache
    assert decided.tolerance == 0 and "F" in {
        one for one, two in zip(decided.plan, cache.plan, strict=True) if two == "S"
    }
    for again in ("two.png", "three.png"):
        assert np.array_equal(pixels(here / again), pixels(here / "one.png"))
    assert run(["replay", "one.png", "-o", "four.png", "-q", "--plan", cache.plan]) == 0
    assert read_metadata(here / "four.png").settings.cache.tolerance == 0


def test_a_traces_decisions_are_stronger_than_what_is_set_for_good(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["a cat", *QUICK, "--plan", "FFRFSF", "--forecast", "1", "--trace", "t.jsonl", "-q"]) == 0
    monkeypatch.setenv("H2GEN_PRESET", "quality")
    monkeypatch.setenv("H2GEN_STEPS", "20")
    monkeypatch.setenv("H2GEN_SOLVER", "unipc")
    capsys.readouterr()
    assert run(["a cat", "--cfg", "1", "--replay-decisions", "t.jsonl", "--dry-run", "--json"]) == 0
    found = {name: item["value"] for name, item in json.loads(capsys.readouterr().out)["settings"].items()}
    assert (found["plan"], found["forecast"], found["steps"], found["solver"]) == ("FFRFSF", 1, 6, "own")
    assert (found["tau1"], found["warmup_steps"]) == (0, 0) and "preset" not in found


def test_policies_are_in_the_picture_and_in_its_replay(here: Path) -> None:
    assert run(["a cat", *QUICK, "--preset", "paper", *POLICIES, "-o", "one.png", "-q"]) == 0
    cache = read_metadata(here / "one.png").settings.cache
    assert cache.policies == {
        "forecast": 1,
        "tolerance": 0.01,
        "budget": True,
        "hierarchy": "checked",
        "max_detail_age": 3,
        "pfs": "stable",
    }
    assert run(["replay", "one.png", "-o", "two.png", "-q"]) == 0
    assert np.array_equal(pixels(here / "one.png"), pixels(here / "two.png"))
    assert run(["replay", "one.png", "-o", "three.png", "-q", "--no-budget", "--forecast", "0"]) == 0
    other = read_metadata(here / "three.png").settings.cache
    assert (other.budget, other.forecast, other.hierarchy) == (False, 0, "checked")


def test_a_prompt_file_may_set_policies_and_a_mistake_has_its_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "good.yaml").write_text(
        "defaults:\n  steps: 4\n  cfg: 1\n  size: 64x64\n  seed: 1\nprompts:\n"
        "  - prompt: a cat\n    plan: FFRS\n    forecast: 1\n  - prompt: a dog\n    budget: true\n    pfs: stable\n"
    )
    assert run(["batch", "good.yaml", "--dry-run", "--json"]) == 0
    one, two = (json.loads(line)["settings"] for line in capsys.readouterr().out.splitlines())
    assert (one["plan"], one["forecast"], two["budget"], two["pfs"]) == ("FFRS", 1, True, "stable")
    (here / "bad.yaml").write_text("prompts:\n  - prompt: a cat\n    steps: 4\n    plan: FFR\n    budget: 3\n")
    assert run(["batch", "bad.yaml"]) == 2
    assert "bad.yaml:5: budget is 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_shell_sets_policies(here: Path) -> None:
    lines = [
        ":set budget on",
        ":set forecast 1",
        ":set hierarchy checked",
        "a cat",
        ":unset budget",
        ":set plan FFRSFF",
    ]
    done = h2gen("shell", *QUICK, input="\n".join([*lines, "a dog", ":set plan", "a cow"]))
    assert done.returncode == 0, done.stderr
    cat, dog, cow = (read_metadata(here / line).settings.cache for line in done.stdout.splitlines())
    assert (cat.budget, cat.forecast, cat.hierarchy, cat.plan) == (True, 1, "checked", "")
    assert (dog.budget, dog.plan) == (False, "FFRSFF")
    assert (cow.forecast, cow.plan) == (1, "")


def test_a_presets_policies_stand_in_the_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from h2gen.settings.presets import user_folder

    user_folder().mkdir(parents=True)
    (user_folder() / "mine.toml").write_text("tau1 = 0.1\ntau2 = 0.1\nforecast = 1\nbudget = true\ntolerance = 0.01\n")
    assert run(["presets"]) == 0
    assert "mine 0.01 0.1 0.1 forecast 1, budget - -" in " ".join(capsys.readouterr().out.split())
    (user_folder() / "mine.toml").write_text("plan = 'FFRS'\nforecast = 1\nwarmup_steps = 3\n")
    assert run(["presets"]) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mine"))
    assert row == ["mine", "-", "-", "-", "plan", "FFRS,", "forecast", "1", "-", "-"]
    (user_folder() / "mine.toml").write_text("plan = 'FFSF'\ntolerance = 0.05\nwarmup_steps = 3\n")
    assert run(["presets"]) == 0
    assert "mine 0.05 - - plan FFSF, warmup 3 - -" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "FXR"], "plan has 'X' at step 2"),
        (["--plan", "FRR"], "plan is for 3 steps, and steps is 6"),
        (["--plan", "RFFFFF"], "its first step must be F"),
        (["--plan", "FFFFFF", "--tau1", "0.1"], "--plan and --tau1 contradict"),
        (["--plan", "FFFFFF", "--no-cache"], "--no-cache and --plan contradict"),
        (["--budget", "--no-cache"], "--no-cache and --budget contradict"),
        (["--forecast", "2"], "forecast is 2"),
        (["--hierarchy", "loose"], "forced or checked"),
        (["--pfs", "mine"], "paper or stable"),
        (["--tolerance", "-1"], "tolerance is -1"),
        (["--replay-decisions", "gone.jsonl"], "gone.jsonl"),
        (["--replay-decisions", "gone.jsonl", "--plan", "FFFFFF"], "--replay-decisions and --plan contradict"),
        (["--replay-decisions", "gone.jsonl", "--preset", "fast"], "--replay-decisions and --preset contradict"),
        (["--replay-decisions", "gone.jsonl", "--tau1", "0.1"], "--replay-decisions and --tau1 contradict"),
        (["--replay-decisions", "gone.jsonl", "--tau2", "0"], "--replay-decisions and --tau2 contradict"),
        (["--replay-decisions", "gone.jsonl", "--no-cache"], "--replay-decisions and --no-cache contradict"),
    ],
    ids=range(16),
)
def test_a_mistake_is_one_line(
    here: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["a cat", *QUICK, *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1
    assert list(here.iterdir()) == []
