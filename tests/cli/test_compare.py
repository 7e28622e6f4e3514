"""``h2gen compare`` and ``h2gen bench --paper``: figures that can be trusted, and pictures to look at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from h2gen.cli.app import run
from h2gen.settings.presets import load_preset
from tests.cli.programs import in_a_terminal, read_until

OF_MANY_METHODS = "a-cat-7-methods.svg"
"""Written only if, by time, two numbers of steps match the cached run."""
QUICK = ["--steps", "8", "--cfg", "1", "--repeat", "1", "--seed", "7", "--metrics", "psnr,ssim"]


@pytest.mark.slow
def test_a_prompt_gives_a_table_a_sheet_and_a_chart(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "a cat", *QUICK, "--preset", "paper"]) == 0
    out, err = capsys.readouterr()
    table, summary = out.split("\n\n")
    assert all(len(line) <= 80 for line in table.splitlines()) and len(summary.splitlines()) == 2
    for words in ("uncached, 8 steps", "H2-Cache 0.15, 0.22", "PSNR", "SSIM", "blocks", "seconds", "faster"):
        assert words in out, words
    assert "\x1b" not in out + err
    made = sorted(os.listdir(here))
    assert [name for name in made if name != OF_MANY_METHODS] == ["a-cat-7-compare.png", "a-cat-7-decisions.svg"]
    assert "a-cat-7-compare.png" in err
    with Image.open(here / "a-cat-7-compare.png") as sheet:
        assert sheet.width > 3 * 128
    # Nothing is overwritten.
    assert run(["compare", "a cat", *QUICK, "--preset", "paper"]) == 0
    assert set(made) < set(os.listdir(here))
    assert len([name for name in os.listdir(here) if not name.startswith("a-cat-7-methods")]) == 4


@pytest.mark.slow
def test_a_sweep_with_a_report_and_a_preset(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.txt").write_text("a cat\na [red]dog[/]\n")
    command = ["compare", "--prompts", "p.txt", *QUICK, "--tau1", "0.2,0.5", "--tau2", "0.3", "--preset", "paper"]
    assert run([*command, "--report", "rep", "--save-preset", "mine", "--row", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [case["prompt"] for case in found["cases"]] == ["a cat", "a [red]dog[/]"]
    rows = [method for method in found["methods"] if method["kind"] == "h2"]
    assert [row["name"] for row in rows] == ["h2 0.2 0.3", "h2 0.5 0.3"]
    assert found["chosen"] == "h2 0.5 0.3"
    kept = json.loads((here / "rep" / "results.json").read_text())
    assert kept == found
    for method in kept["methods"]:
        for shot in method["shots"]:
            assert (here / "rep" / shot["picture"]).is_file()
    page = (here / "rep" / "index.html").read_text()
    assert "a [red]dog[/]" in page
    preset = load_preset("mine")
    assert (preset.config.tau1, preset.config.tau2) == (0.5, 0.3)
    assert preset.figures["share"] == round(rows[1]["share"], 3)


BAD: list[tuple[list[str], str]] = [
    (["compare"], "Give a prompt"),
    (["compare", "a cat", "--prompts", "p.txt"], "Give a prompt, or --prompts"),
    (["compare", ""], "The prompt is empty"),
    (["compare", "--prompts", "gone.txt"], "no such file"),
    (["compare", "--prompts", "own.jsonl"], "its own settings"),
    (["compare", "a cat", "--tau1", "x"], "tau1 is 'x'"),
    (["compare", "a cat", "--tau1", "0.1,-1"], "tau1 is -1"),
    (["compare", "a cat", "--tau1", "0", "--tau2", "0"], "The cache is off"),
    (["compare", "a cat", "--preset", "off"], "The cache is off"),
    (["compare", "a cat", "--repeat", "0"], "repeat is 0"),
    (["compare", "a cat", "--limit", "0"], "limit is 0"),
    (["compare", "a cat", "--row", "2"], "row is 2; there are 1"),
    (["compare", "a cat", "--fewer", "x"], "fewer is 'x'"),
    (["compare", "a cat", "--fewer", "28"], "from 1 to 27"),
    (["compare", "a cat", "--metrics", "psrn"], "did you mean 'psnr'"),
    (["compare", "a cat", "--against", "tailor"], "did you mean 'taylor'"),
    (["compare", "a cat", "--report", "p.txt"], "is a file; give a folder"),
    (["compare", "a cat", "--report", "full"], "is not empty"),
    (["compare", "a cat", "--save-preset", "fast"], "A preset 'fast' already exists"),
    (["compare", "a cat", "--save-preset", "../x"], "cannot be called"),
    (["compare", "a cat", "--out", "a.png"], "needs a folder"),
    (["compare", "a cat", "--metrics", "lpips"], "lpips is left out"),
    (["bench", "--prompts", "p.txt"], "is only for --paper"),
    (["bench", "--size", ""], "--size is only for --paper"),
    (["bench", "--offload", "model"], "--offload is only for --paper"),
    (["bench", "--paper", "--ways", "off"], "--ways cannot be used with --paper; leave out one of them."),
    (["bench", "--paper", "--random"], "--random cannot be used with --paper; leave out one of them."),
    (["bench", "--ways", "offf"], "did you mean 'off'?"),
    (["a cat", "--attention", "_native_cudnn", "--device", "cpu", "--dry-run"], "needs a CUDA or ROCm GPU"),
    (["bench", "--paper"], "needs prompts"),
    (["bench", "--paper", "--prompts", "p.txt", "--report", "full"], "is not empty"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_ends_in_one_clear_line_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (here / "p.txt").write_text("a cat\n")
    (here / "own.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a dog", "steps": 3}\n')
    (here / "full").mkdir()
    (here / "full" / "x").touch()
    before = sorted(here.rglob("*"))
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err and len(err.splitlines()) == 1 and err.startswith("h2gen: ")
    assert sorted(here.rglob("*")) == before


@pytest.mark.slow
def test_the_papers_protocol_runs_on_the_bundled_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.jsonl").write_text('{"caption": ["a cat", "x"]}\n{"caption": "a dog"}\n')
    command = ["bench", "--paper", "--prompts", "p.jsonl", "--prompt-key", "caption", "--limit", "1"]
    assert run([*command, "--steps", "10", "--size", "128x128", "--json", "--report", "rep"]) == 0
    captured = capsys.readouterr()
    found: dict[str, Any] = json.loads(captured.out)
    names = [method["name"].split(" ")[0] for method in found["methods"]]
    assert names[:2] == ["uncached", "h2"] and {"block", "tea"} <= set(names)
    assert found["methods"][1]["name"] == "h2 0.15 0.22"
    assert found["cases"] == [{"prompt": "a cat", "seed": 0}]
    assert "clip-iqa is left out" in captured.err  # there is no network, and it says so
    assert (here / "rep" / "index.html").is_file()


@pytest.mark.slow
def test_in_a_terminal_it_says_how_far_it_is(here: Path) -> None:
    with in_a_terminal("compare", "a [red]cat[/]", *QUICK, "--steps", "20") as (process, screen):
        text = read_until(screen)
        assert process.wait(600) == 0
        assert process.stdout is not None
        assert "uncached, 20 steps" in process.stdout.read()
    for words in ("Warming up", "Measuring", "runs", "seconds"):
        assert words in text, words
