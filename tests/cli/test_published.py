"""Published plans in the program: a small checkpoint with FLUX.1-dev's number of blocks and distilled guidance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from h2gen.cli.app import run
from h2gen.output.metadata import read_metadata
from h2gen.settings.profiles.published import WORDS, plans_for
from tests import small
from tests.cli.programs import h2gen

SMALL = ["--steps", "14", "--size", "64x64", "--speedup", "2"]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "small-dev"
    small.flux_pipeline(layers=19, single_layers=38).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_picture_follows_the_plan_and_records_where_it_comes_from(
    dev: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["a cat", "--model", dev, *SMALL, "--seed", "7", "-o", "cat.png", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count(WORDS) == 1 and "for 'small-dev' at 14 steps, 64x64, stretched" in captured.err
    printed = json.loads(captured.out)
    found = read_metadata(here / "cat.png")
    origin = found.settings.published_plan
    assert origin is not None and WORDS in origin and "14 steps" in origin
    assert printed["published_plan"] == found.everything["published_plan"] == origin
    plan = found.settings.cache.plan
    assert found.everything["cache"]["skipped"] == plan.count("S") > 0
    assert f"{plan.count('F')} of 14 steps computed" in captured.err
    assert run(["info", "cat.png"]) == 0
    assert "published plan" in (shown := capsys.readouterr().out) and WORDS in " ".join(shown.split())
    assert run(["replay", "cat.png", "--model", dev, "-o", "again.png", "-q"]) == 0
    assert read_metadata(here / "again.png").settings == found.settings
    assert run(["replay", "cat.png", "--model", dev, "--no-cache", "-o", "plain.png", "-q"]) == 0
    assert read_metadata(here / "plain.png").settings.published_plan is None


@pytest.mark.slow
def test_a_batch_and_a_shell_say_it_and_record_it(dev: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.txt").write_text("a cat\na dog\n")
    assert run(["batch", "p.txt", "--model", dev, *SMALL, "--seed", "1", "--out", "pictures"]) == 0
    assert capsys.readouterr().err.count(WORDS) == 1
    done = h2gen("shell", "--model", dev, *SMALL, "--seed", "7", input="a cat\na dog\n")
    assert done.stderr.count(WORDS) == 1 and done.returncode == 0
    pictures = [*(here / "pictures").glob("*.png"), *map(Path, done.stdout.splitlines())]
    assert len(pictures) == 4
    assert {WORDS in str(read_metadata(path).settings.published_plan) for path in pictures} == {True}


def test_a_dry_run_says_it_in_its_table_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--model", "dev", "--speedup", "3", "--dry-run"]) == 0
    table, told = capsys.readouterr()
    assert WORDS in told and WORDS in " ".join(table.split())
    assert run(["a cat", "--model", "dev", "--speedup", "3", "--dry-run", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert WORDS in found["published_plan"]
    (plan,) = (each.plan for each in plans_for("FLUX.1-dev") if (each.steps, each.computed) == (50, 13))
    assert found["settings"]["plan"] == {"value": plan, "source": "published plan"}


@pytest.mark.slow
def test_a_batch_says_it_for_each_number_of_steps_before_it_begins(
    dev: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "p.yaml").write_text("prompts:\n  - a cat\n  - {prompt: a dog, steps: 28}\n")
    assert run(["batch", "p.yaml", "--model", dev, "--speedup", "3", "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    assert [len(json.loads(line)["settings"]["plan"]) for line in captured.out.splitlines()] == [50, 28]
    assert captured.err.count(WORDS) == 2
    assert "'small-dev' at 28 steps, 1024x1024: Using a plan from cache-dit" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fidelity", "0.9"], "h2gen: --fidelity needs measured figures, and the plans for 'dev'"),
        (["--speedup", "7"], "h2gen: --speedup is 7, faster than the plans for 'dev' at 50 steps, 1024x1024 allow"),
    ],
)
def test_what_the_plans_cannot_answer_is_one_line(
    arguments: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["a cat", "--model", "dev", *arguments]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(words) and WORDS in told and not list(here.iterdir())


def test_the_lists_of_presets_and_models_name_the_plans(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets"]) == 0
    assert WORDS in capsys.readouterr().err
    for name in ("dev", "krea", "qwen-image"):
        assert run(["models", "show", name]) == 0
        assert "an estimated 2.3x, 3.8x or 5.5x" in (shown := capsys.readouterr().out) and WORDS in shown
    assert run(["models", "show", "schnell"]) == 0
    assert WORDS not in capsys.readouterr().out
