"""``h2gen frontier``: every method's best at several budgets, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from h2gen.cache import CacheConfig
from h2gen.cli.app import run
from h2gen.evaluation.frontier import prepare_frontier
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey, write_profile
from tests import small

SMALL = ["frontier", "--steps", "10", "--cfg", "1", "--limit", "1", "--budgets", "0.5", "--against", "fb"]


@pytest.fixture
def profile(here: Path) -> str:
    figures = Figures(0.5, 0.1, 2.0, 0.96, 0.9, 30.0, 25.0)
    plan = CacheConfig(0, 0, forecast=1, plan="FFSFSFSSFS")
    choices = (Choice("planned", 10, "own", plan, figures),)
    path = here / "own.toml"
    write_profile(Profile(path, ProfileKey("tiny", "0" * 64, 10, 128, 128, "plain"), choices, {}))
    return str(path)


@pytest.mark.slow
def test_it_measures_fewer_steps_peers_the_paper_and_ours(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, "--profile", profile, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"steps", "solver", "peer", "paper", "ours"} == {row["whose"] for row in found["rows"]}
    assert all(row["share"] <= 0.52 and 0 <= row["error"] < 1 for row in found["rows"])
    assert found["comparison"]["cases"] == [{"prompt": "a fox face", "seed": 3000}]


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("make", [small.qwen_image_pipeline, small.z_image_pipeline])
def test_the_profile_that_tune_made_of_another_family_is_ranked(
    make: Callable[..., Any], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(layers=3).save_pretrained(here / "model")
    (here / "p.txt").write_text("a cat\na dog\n")
    model = ["--model", "./model", "--steps", "8", "--size", "64x64", "--prompts", "p.txt", "--budgets", "0.5"]
    least = ["--search", "1", "--check", "1", "--tries", "1", "--threshold-tries", "1"]
    assert run(["tune", *model, *least, "--quiet"]) == 0
    capsys.readouterr()
    some = ["--limit", "1", "--only", "own,steps,peers", "--against", "meancache"]
    assert run(["frontier", *model, *some, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {"steps", "solver", "peer", "ours"} == {row["whose"] for row in rows}


@pytest.mark.slow
def test_it_shows_a_table_for_each_budget_and_says_how_ours_compare(
    profile: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "p.txt").write_text("a cat\n")
    command = [*SMALL, "--profile", profile, "--prompts", "p.txt", "--report", "rep"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "At 50 % of the blocks".replace(" %", "\u00a0%") in out
    sentence = " ".join(out.split())
    assert "The plan (H2-Cache, planned) has " in sentence and "x the error of the best alternative, " in sentence
    assert "at the worst prompt, " in sentence
    page = (here / "rep" / "index.html").read_text()
    assert "h2gen frontier" in page and "h2gen compare" not in page
    assert "of the blocks: The plan (H2-Cache, planned) has " in page and "the plan at " in page
    figures = json.loads((here / "rep" / "results.json").read_text())
    assert any(method["label"] == "H2-Cache, planned" for method in figures["methods"])


def test_a_dry_run_says_how_much_it_is_and_makes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["frontier", "--steps", "10", "--limit", "2", "--budgets", "0.5", "--only", "steps"]
    assert run([*small, "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "At most 8 pictures (4 methods, 2 prompts); they take about as long as 5 uncached ones: " in out
    assert "as in the profile 'tiny-" in out
    assert run([*small, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["pictures"] == 8
    for steps, lowest in (("39", 0.25), ("40", 0.2)):
        prepared = prepare_frontier(steps=int(steps), only="steps")
        assert (prepared.estimate.prompts, min(prepared.budgets)) == (48, lowest)
    assert not list(here.iterdir())


BAD = [
    (["--limit", "0"], "limit is 0; give a whole number from 1 upwards"),
    (["--limit", "49"], "there are 48 prompts built in"),
    (["--budgets", "2"], "above 0 and below 1"),
    (["--against", "tailor"], "did you mean 'taylor'"),
    (["--only", "peer"], "only is 'peer', but 'peer' is not one of own, paper, steps, peers; did you mean 'peers'?"),
    (["--only", ","], "which is empty; choose from own, paper, steps, peers"),
    (["--only", "steps"], "--against names other caches, but --only leaves them out; add peers to --only."),
    (["--prompts", "gone.txt"], "no such file"),
    (["--profile", "gone.toml"], "No such file"),
    (["--steps", "33"], "There is no profile for 'tiny' at 33 steps"),
    (
        ["--steps", "33"],
        "Or name another one: --profile FILE, or leave out h2gen's own methods: --only steps,paper,peers.",
    ),
]


@pytest.mark.parametrize(("more", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_ends_in_one_clear_line(
    here: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert run([*SMALL, *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err and len([line for line in err.splitlines() if line.startswith("h2gen: ")]) == 1
    assert not list(here.iterdir())
