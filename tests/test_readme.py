"""The README is a contract: what it shows is what the program says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from h2gen.batches.jobs import Jobs, file_name
from h2gen.batches.prompts import KEYS, read_prompts
from h2gen.cache.outcome import Outcome
from h2gen.cache.trace import StageRecord, StepRecord
from h2gen.cli.app import run
from h2gen.output.names import FIELDS
from h2gen.settings.presets import list_presets
from tools.readme import with_made

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_options_and_the_prompts_of_its_sheet_are_the_programs_own() -> None:
    assert with_made(README) == README, "run python tools/readme.py"


def test_it_opens_with_the_two_commands_that_do_everything() -> None:
    picture, tests = blocks("sh")[0].splitlines()
    assert picture.endswith('.venv/bin/h2gen "a cat"')
    assert tests.endswith("tools/check.py")
    assert all(
        line.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt")
        for line in (picture, tests)
    )


def test_every_command_line_that_it_shows_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "cute80.jsonl").write_text('{"image_caption": ["a cat"]}\n')
    assert run(["a cat", "--seed", "7", "--steps", "2", "--cfg", "1"]) == 0
    shown = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    ours = [words[1:] for words in shown if words and words[0] == "h2gen" and "--base" not in words]
    assert ours
    for words in ours:
        assert run(words if words[0] == "info" else [*words, "--dry-run"]) == 0, words


def test_the_prompt_file_that_it_shows_is_one(tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text(blocks("yaml")[0])
    reading = read_prompts([str(tmp_path / "prompts.yaml")])
    assert reading.mistakes == []
    names = [file_name(job, "0" * 32, "tiny") for job in Jobs(reading, {}, {})]
    assert names[3:5] == ["0004-a-cat-4", "apple-1"] and len(names) == 8


def test_the_keys_of_an_entry_are_those_that_it_lists() -> None:
    listed = re.search(r"An entry may set (.*?); it", README, re.DOTALL)
    assert listed and set(re.findall(r"`(\w+)`", listed[1])) == set(KEYS)


def test_the_fields_of_a_name_are_those_that_it_lists() -> None:
    listed = re.search(r"`--name (.*?)\. `--dry-run`", README, re.DOTALL)
    assert listed and {field.split(":")[0] for field in re.findall(r"\{([\w:]+)\}", listed[1])} == set(FIELDS)


def test_every_preset_stands_in_its_table_with_its_figures() -> None:
    for preset in list_presets():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{preset.name}`"))
        deciding = {"tau1": preset.config.tau1, "tau2": preset.config.tau2, "tolerance": preset.config.tolerance}
        assert all(f"`{name}` {value:g}" in row for name, value in deciding.items() if value)
        if preset.figures:
            assert f"{preset.figures['share']:.0%}" in row
            assert f"{preset.figures['psnr_mean']:.1f}" in row
            assert f"{preset.figures['psnr_worst']:.1f}" in row


def test_the_python_that_it_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h2gen

    monkeypatch.chdir(tmp_path)
    session_code, pipeline_code = blocks("python")
    names: dict[str, object] = {}
    exec(compile(session_code, "README.md", "exec"), names)
    assert (tmp_path / "cat.png").exists()
    session = names["session"]
    assert isinstance(session, h2gen.Session)

    class Small:
        """The pipeline, called for a small picture of few steps."""

        def __getattr__(self, name: str) -> object:
            return getattr(session.pipe, name)

        def __call__(self, prompt: str) -> object:
            return session.pipe(prompt, num_inference_steps=3, width=64, height=64, max_sequence_length=16)

    exec(compile(pipeline_code, "README.md", "exec"), {"h2gen": h2gen, "pipe": Small()})
    h2gen.remove(session.pipe)


def test_the_line_of_a_trace_that_it_shows_is_one() -> None:
    shown = json.loads(blocks("json")[0])
    step = StepRecord(
        0,
        3,
        "cond",
        912.5,
        0.9125,
        StageRecord(0.041, Outcome.REUSED),
        StageRecord(None, Outcome.FORCED),
        2,
        57,
        0.0041,
    )
    assert step.to_json() == shown


def test_files_that_it_links_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
