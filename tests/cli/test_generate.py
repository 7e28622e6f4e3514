"""``h2gen PROMPT``, as a user meets it: what it prints where, what it writes, how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from h2gen import __version__
from h2gen.cli.app import run
from h2gen.output.metadata import read_metadata
from h2gen.settings.user_defaults import config_file
from tests.cli.programs import in_a_terminal, piped, read_until

QUICK = ["--steps", "3", "--cfg", "1", "--seed", "7", "--preset", "paper"]


def test_a_prompt_makes_a_picture_and_its_path_is_all_that_stdout_says(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["a cat", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out == "a-cat-7.png\n"
    assert "--model dev" not in err  # said at a terminal only
    assert "seed 7" in err
    assert "\x1b" not in err
    with Image.open(here / "a-cat-7.png") as image:
        assert image.size == (128, 128)


@pytest.mark.slow
def test_piped_output_has_no_cursor_codes_even_with_force_color() -> None:
    done = piped("a cat", *QUICK, env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_quiet_says_nothing_but_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "-q", *QUICK]) == 0
    assert capsys.readouterr() == ("a-cat-7.png\n", "")


TIGER = (
    "a tiger beside a blue car and above three red apples, with a green tractor beside a house, on a yellow background"
)


@pytest.mark.parametrize("options", [["--json"], ["-v", "--json"]])
def test_the_end_of_a_prompt_that_is_not_read_is_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--steps", "2", "--cfg", "2", "--size", "64x64"]
    assert run([TIGER, "--negative", f"a dog and {TIGER}", *options, *quick]) == 0
    out, err = capsys.readouterr()
    left = json.loads(out)["left_out"]
    assert TIGER.endswith(left["prompt"]) and left["negative"].endswith(left["prompt"])
    told = [line for line in err.splitlines() if "truncated" in line]
    assert len(told) == 2
    assert f"The prompt is truncated to 24 tokens; left out: '{left['prompt']}'." in told[0]
    assert "negative prompt" in told[1]


def test_what_is_read_otherwise_than_it_was_meant_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a lighthouse <lora:emoji:0.8>", "--guidance", "7", "--size", "512x512", "--dry-run"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [sum(word in line for line in lines) for word in ("lighthouse", "lora", "--guidance", "512x512")] == [1] * 4


def test_models_show_lists_what_the_bundled_model_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "100 things           cat, dog, horse," in out and "teddy bear" in out and "A beside B" in out
    assert not any(line.endswith(" ") for line in out.splitlines())
    assert run(["models", "show", "tiny-video"]) == 0
    out = capsys.readouterr().out
    assert "\nmotions              A moves to the right, " in out and "A turns, A alone (stays still)\n" in out
    assert "layouts" not in out
    assert run(["models", "show", "dev"]) == 0
    assert "1024x1024" in capsys.readouterr().out
    assert run(["models", "show", "nothing"]) == 2


def test_json_is_one_object_with_the_settings_and_what_the_cache_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--json", "--tau1", "9", "--tau2", "9", "--max-consecutive", "0", *QUICK]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    made = json.loads(line)
    assert made["path"] == "a-cat-7.png"
    assert (made["settings"]["seed"], made["settings"]["tau1"], made["device"]) == (7, 9.0, "cpu")
    assert (made["model"]["name"], made["settings"]["solver"], made["preset"]) == ("tiny", "own", "paper")
    assert made["cache"]["passes"] == 3
    assert made["seconds"] > 0


PLAIN = ["--steps", "3", "--cfg", "1", "--seed", "7"]


@pytest.mark.parametrize("more", [[], ["--no-cache"], ["--cfg", "3", "--solver", "unipc"]])
def test_what_is_printed_is_what_the_picture_records(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    assert run(["a cat", "--json", "-o", "one.png", *PLAIN, *more]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert run(["info", "one.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert ("cache" in printed) == ("--no-cache" not in more) == ("preset" in printed)
    assert "uncached" not in printed


def test_without_metadata_json_says_the_same_but_for_the_hash(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for more in ([], ["--no-metadata"]):
        assert run(["a cat", "--json", "--no-cache", *PLAIN, *more]) == 0
        said.append(json.loads(capsys.readouterr().out))
        for changing in ("path", "made", "seconds", "peak_memory"):
            del said[-1][changing]
    assert said[0]["model"].pop("content_hash")
    assert said[0] == said[1]


def test_verbose_prints_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "-v", *QUICK]) == 0
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [row[0] for row in rows if (row and row[0] in "123" and "24/24" in row) or "2/24" in row] == ["1", "2", "3"]


def test_a_verbose_table_in_a_pipe_has_all_its_columns_with_two_passes_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "-v", *QUICK, "--cfg", "3"]) == 0
    lines = capsys.readouterr().err.splitlines()
    columns = "step pass sigma structure detail outcome blocks ms"
    assert columns in [" ".join(line.split()) for line in lines]


def test_the_trace_is_a_header_a_line_a_step_and_a_summary(here: Path) -> None:
    assert run(["a cat", "--tau1", "0.9", "--tau2", "0.9", "--trace", "t.jsonl", "-q", *QUICK]) == 0
    header, *steps, summary = [json.loads(line) for line in (here / "t.jsonl").read_text().splitlines()]
    assert header["h2gen"] == __version__
    wanted = {"prompt", "seed", "steps", "width", "height", "guidance", "max_sequence_length", "model", "tau1", "tau2"}
    assert wanted <= set(header["settings"])
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert set(steps[0]) == {
        "step", "context", "timestep", "sigma", "structure", "detail", "blocks_run", "blocks_total", "seconds"
    }  # fmt: skip
    assert steps[0]["structure"] == {"change": None, "outcome": "computed"}
    assert steps[1]["sigma"] == pytest.approx(steps[1]["timestep"] / 1000)
    assert summary["summary"]["passes"] == 3
    assert summary["summary"]["blocks_run"] == sum(step["blocks_run"] for step in steps)


def test_a_cache_that_reused_nothing_says_so_and_names_thresholds_that_would_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = [*QUICK, "--steps", "16"]
    assert run(["a cat", "--tau1", "0.0001", "--tau2", "0.0001", *quick]) == 0
    advice = capsys.readouterr().err.splitlines()[-1]
    assert "reused nothing" in advice
    words = advice.split()
    thresholds = [words[words.index(name) + 1] for name in ("--tau1", "--tau2")]
    assert run(["a cat", "--tau1", thresholds[0], "--tau2", thresholds[1], *quick]) == 0
    assert "reused nothing" not in capsys.readouterr().err


def test_every_figure_is_against_the_uncached_run_that_was_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["--plan", "FSSSFSSSF", "--steps", "5", "--solver", "heun", "--size", "64x64", "--cfg", "1"]
    assert run(["a cat", *plan, "-o", "a.png", "--trace", "t.jsonl", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "60% of the blocks of 5 steps, est. 1.67x; passes: 3 full" in err
    summary = json.loads((here / "t.jsonl").read_text().splitlines()[-1])["summary"]
    for cache in (json.loads(out)["cache"], summary, read_metadata(here / "a.png").everything["cache"]):
        assert (cache["share"], cache["passes"]) == (0.6, 9)
        assert cache["blocks_run"] / cache["blocks_total"] == 0.6
        assert cache["estimated_speedup"] == pytest.approx(5 / 3)


def test_fewer_steps_without_a_cache_say_what_a_second_pass_costs(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--steps", "2", "--size", "64x64", "--cfg", "1", "--no-cache", "--no-metadata"]
    assert run(["a cat", *size, "--solver", "heun", "-o", "a.png"]) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith(" s, 150% of the blocks of 2 steps, est. 0.67x")
    assert run(["a cat", *size, "-o", "b.png"]) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith(" s")


@pytest.mark.parametrize(
    "arguments",
    [["--", "presets"], ["-p", "presets"], ["--prompt", "presets"], ["--", "-p"], ["-p", "-a cat"]],
)
def test_a_prompt_that_looks_like_a_command_or_an_option_can_be_given(here: Path, arguments: list[str]) -> None:
    assert run([*QUICK, "-q", *arguments]) == 0
    assert len(list(here.glob("*.png"))) == 1


def test_options_may_stand_before_and_after_the_prompt(here: Path) -> None:
    assert run(["--seed", "1", "a cat", "--steps", "1", "--cfg", "1", "-q"]) == 0
    assert (here / "a-cat-1.png").exists()


def test_a_misspelt_command_is_painted_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preset", *QUICK]) == 0
    assert "did you mean 'presets'" in capsys.readouterr().err


def test_two_prompts_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["comapre", "a cat"]) == 2
    assert run(["a cat", "-p", "a dog"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_dash_reads_the_prompt_from_stdin(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffa dog\n".encode())))
    assert run(["-", *QUICK, "-q"]) == 0
    assert (here / "a-dog-7.png").exists()


def test_text_from_users_is_neither_markup_nor_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a [red]cat[/] \x1b[31m\u202e[/] \x07", "--dry-run"]) == 0
    assert run(["x", "--preset", "\x1b]0;owned\x07[/]"]) == 2
    out, err = capsys.readouterr()
    assert "[red]cat[/]" in out
    assert not set("\x1b\x07\u202e") & set(out + err)


def test_a_dry_run_shows_what_was_given_or_differs_and_all_on_request(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(*arguments: str) -> dict[str, list[str]]:
        assert run([*arguments, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line.split()[1:] for line in lines if line.strip()}

    found = rows("cat", "--warmup-steps", "0")
    assert found["prompt"] == ["cat", "argument"]
    assert found["seed"][1] == "random"
    assert found["tolerance"] == ["0.006", "preset", "balanced"]
    assert found["warmup-steps"] == ["0", "option"]
    assert not {"tau1", "final-steps", "plan", "pfs"} & set(found)
    assert {"tau1", "final-steps", "plan", "pfs"} < set(rows("cat", "-v"))
    assert rows("-p", "cat", "--seed", "7")["seed"] == ["7", "option"]
    assert rows("-p", "cat", "--seed", "-1", "-n", "2")["seed"][1] == "random"
    assert rows("-p", "cat")["prompt"] == ["cat", "option"]
    assert rows("cat", "--seed", "7")["writes"] == ["cat-7.png"]
    assert rows("cat", "-o", "a.jpeg")["writes"] == ["a.jpeg"]
    (here / "cat-7.png").touch()
    assert "number" in rows("cat", "--seed", "7")["writes"]
    assert "replaced" in rows("cat", "--seed", "7", "--overwrite")["writes"]
    assert run(["cat", "-n", "2", "--seed", "7", "-o", "a.png", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paths"] == ["a-7.png", "a-8.png"]
    assert rows("compare", "cat")["prompt"] == ["cat", "argument"]
    assert rows("compare", "cat")["seed"][1] == "prompt"


def test_that_the_model_is_the_bundled_one_is_said_once_and_at_a_terminal_only() -> None:
    from rich.console import Console

    from h2gen.cli.views.request import show_notice
    from h2gen.settings.resolve import BUNDLED_NOTICE

    for terminal, said in ((False, False), (True, True), (True, False)):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        show_notice(BUNDLED_NOTICE, console)
        assert isinstance(console.file, io.StringIO)
        assert ("bundled" in console.file.getvalue()) is said


@pytest.mark.parametrize("option", ["--warmup-steps", "--final-steps", "--max-consecutive", "--max-detail-age"])
def test_what_a_plan_ignores_is_refused(option: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--plan", "F" * 28, option, "2", "--dry-run"]) == 2
    assert f"{option} has no effect with --plan; give one." in capsys.readouterr().err
    assert run(["a cat", "--replay-decisions", "t.jsonl", option, "2"]) == 2
    assert f"{option} has no effect with --replay-decisions; give one." in capsys.readouterr().err
    assert run(["a cat", "--replay-decisions", "t.jsonl", "--budget"]) == 2
    assert "--budget has no effect with --replay-decisions; give one." in capsys.readouterr().err


def test_a_dry_run_shows_each_setting_with_its_source_and_makes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("H2GEN_CFG", "2")
    assert run(["a cat", "--dry-run", "--json", "--preset", "paper", "--tau1", "0.08", "--seed", "7"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["tau1"] == {"value": 0.08, "source": "option"}
    assert settings["tau2"] == {"value": 0.22, "source": "preset paper"}
    assert settings["cfg"] == {"value": 2.0, "source": "environment"}
    assert settings["size"] == {"value": "128x128", "source": "model default"}
    assert os.listdir(here) == []


def test_existing_files_are_replaced_when_that_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat.JPEG", "cat.toml", "t.jsonl"):
        (here / name).write_text("old")
    files = ["-o", "cat.JPEG", "--sidecar", "--trace", "t.jsonl"]
    assert run(["a cat", *QUICK, "-q", *files]) == 2
    assert run(["a cat", *QUICK, "-q", *files, "--overwrite"]) == 0
    assert capsys.readouterr().out == "cat.JPEG\n"
    assert run(["replay", "cat.JPEG", "-q", "-o", "cat.JPEG", "--overwrite"]) == 0
    assert sorted(os.listdir(here)) == ["cat.JPEG", "cat.toml", "t.jsonl"]
    assert "old" not in {(here / name).read_bytes()[:3].decode(errors="replace") for name in os.listdir(here)}


@pytest.mark.parametrize(("out", "trace"), [("x.gif", "t.jsonl"), (".", "/dev/null/t.jsonl"), (".", ".")])
def test_a_dry_run_refuses_what_could_not_be_written(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str, trace: str
) -> None:
    monkeypatch.setenv("H2GEN_OUT", out)
    assert run(["a cat", "--dry-run", "--trace", trace]) == 2
    printed, errors = capsys.readouterr()
    assert not printed and errors.splitlines()[-1].startswith("h2gen: Cannot write")


BAD: list[tuple[list[str], str]] = [
    ([""], "prompt is empty"),
    (["  "], "prompt is empty"),
    (["a cat", "--model", "dve"], "did you mean 'dev'"),
    (["a cat", "--model", "./nowhere"], "no model folder or file"),
    (["a cat", "--preset", "fats"], "did you mean 'fast'"),
    (["a cat", "--preset", "./gone.toml"], "no preset file './gone.toml'"),
    (["a cat", "--tau1", "-1"], "--tau1 is -1"),
    (["a cat", "--tau1", "nan"], "--tau1 is nan"),
    (["a cat", "--tau2", "much"], "--tau2"),
    (["a cat", "--steps", "0"], "steps is 0"),
    (["a cat", "--steps", "many"], "--steps"),
    (["a cat", "--size", "0x0"], "--size is '0x0'"),
    (["a cat", "--size", "99999x99999"], "size is"),
    (["a cat", "--seed", "-2"], "--seed is '-2'"),
    (["a cat", "--format", "bmp"], "choose png, jpg, webp, mp4 or gif"),
    (["a cat", "--format", "bmp", "--dry-run"], "choose png, jpg, webp, mp4 or gif"),
    (["a cat", "--out", "cat.gif"], "Cannot write pictures as .gif"),
    (["a cat", "--trace", "."], "Cannot write the trace"),
    (["a cat", "--max-sequence-length", "513"], "from 1 to 512"),
    (["a \udcff cat"], "not UTF-8"),
    (["a cat", "--device", "xpu:99"], "xpu"),
    (["a cat", "--device", "toaster"], "toaster"),
    (["a cat", "--dtype", "int8"], "--dtype 'int8' is not supported"),
    (["a cat", "--offload", "cloud"], "--offload 'cloud' is not supported"),
    (["a cat", "--negative", "a dog", "--cfg", "1"], "cfg"),
    (["a cat", "--no-cache", "--tau1", "0.1"], "contradict"),
    (["a cat", "--nonsense"], "nonsense"),
    (["presets", "show", "fats"], "did you mean 'fast'"),
    (["models", "path", "dve"], "did you mean 'dev'"),
    (["models", "path", "dev"], "not on this machine"),
    (["models", "path", "someone/flux"], "not on this machine"),
    (["a cat", "--guidance", "7", "--strict"], "--guidance has no effect"),
    (["bench", "--tokens", "0"], "tokens is 0"),
    (["bench", "--steps", "1"], "--steps"),
]


if os.name == "posix":
    BAD += [
        (["a cat", "--out", "/proc/nothing"], "Cannot write to the folder"),
        (["a cat", "--trace", "/dev/null"], "it already exists"),
    ]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[ascii(" ".join(arguments)) for arguments, _ in BAD])
def test_bad_input_ends_in_one_clear_line_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    notice, line = (["", *err.splitlines()])[-2:]
    assert line.startswith("h2gen: ")
    assert words in line
    assert not notice or arguments[0] == "bench"
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "nosuch"), ("device", "toaster"), ("preset", "fats"), ("offload", "model"), ("out", "cat.gif/x.png")],
)
def test_an_error_about_what_was_not_typed_says_where_it_comes_from(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    (here / "cat.gif").touch()
    assert run(["a cat", "--dry-run", f"--{name}", value]) == 2
    typed = capsys.readouterr().err
    monkeypatch.setenv(f"H2GEN_{name.upper()}", value)
    assert run(["a cat", "--dry-run"]) == 2
    assert capsys.readouterr().err == f"{typed.rstrip()} The value of --{name} comes from H2GEN_{name.upper()}.\n"
    assert run(["a cat", "--dry-run", f"--{name}", value]) == 2
    assert capsys.readouterr().err == typed
    monkeypatch.delenv(f"H2GEN_{name.upper()}")
    config_file().parent.mkdir(parents=True)
    config_file().write_text(f"{name} = {value!r}")
    assert run(["a cat", "--dry-run"]) == 2
    said = f"The value of --{name} comes from the configuration {str(config_file())!r}."
    assert capsys.readouterr().err == f"{typed.rstrip()} {said}\n"


@pytest.mark.parametrize(("typed", "other"), [("--solver", "--scheduler"), ("--scheduler", "--solver")])
@pytest.mark.parametrize("value", [["=foo"], ["=unipc", "--speedup", "3"]])
def test_an_error_calls_an_option_by_the_name_that_was_typed(
    capsys: pytest.CaptureFixture[str], typed: str, other: str, value: list[str]
) -> None:
    assert run(["a cat", typed + value[0], *value[1:]]) == 2
    err = capsys.readouterr().err
    assert typed in err and other not in err


def test_no_file_is_renamed_after_the_option_that_was_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch", "b--solver.txt", "--scheduler", "heun", "--dry-run"]) == 2
    assert "b--solver.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "given", "variables", "arguments"),
    [
        ('"steps": 4', "'tiny' takes 4 steps", {"STEPS": "20"}, ["--speedup", "2"]),
        ('"shift": 3', "--shift is 3", {"SHIFT": "own"}, ["--speedup", "2"]),
        ('"model": "nosuch"', "model applies to the whole run", {"MODEL": "tiny"}, []),
        ('"preset": "dog"', "no preset 'dog'", {"NEGATIVE": "dog"}, []),
    ],
)
def test_what_a_prompt_file_says_is_not_blamed_on_a_variable(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    entry: str,
    given: str,
    variables: dict[str, str],
    arguments: list[str],
) -> None:
    (here / "k.jsonl").write_text(f'{{"prompt": "a cat", {entry}}}')
    for name, value in variables.items():
        monkeypatch.setenv(f"H2GEN_{name}", value)
    assert run(["batch", "k.jsonl", "--dry-run", *arguments]) == 2
    err = capsys.readouterr().err
    assert given in err and "H2GEN_" not in err


def test_an_error_of_replay_does_not_blame_a_variable_that_it_does_not_read(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["a cat", "--steps", "1", "--out", "cat.png"]) == 0
    monkeypatch.setenv("H2GEN_MODEL", "tiny")
    capsys.readouterr()
    assert run(["replay", "cat.png", "--frames", "5"]) == 2
    err = capsys.readouterr().err
    assert "'tiny' makes pictures" in err
    assert "H2GEN_MODEL" not in err


def test_where_guards_keep_every_step_full_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", *QUICK, "--warmup-steps", "3"]) == 0
    assert "its guards kept every step full" in capsys.readouterr().err


def test_a_prompt_on_stdin_that_is_not_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"\xff\xfe\x00", b"", b"x" * 200_000):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert run(["-"]) == 2


def test_a_size_that_is_no_multiple_is_rounded_with_a_notice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--size", "100x70", *QUICK]) == 0
    assert "making 96x64" in capsys.readouterr().err
    with Image.open(here / "a-cat-7.png") as image:
        assert image.size == (96, 64)


def test_a_picture_that_cannot_be_saved_in_the_end_is_rescued(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tempfile

    from h2gen.output import save

    real = save._write

    def full(data: bytes, folder: Path, *rest: Any) -> Path:
        if folder != Path(tempfile.gettempdir()):
            raise OSError(28, "No space left on device")
        return real(data, folder, *rest)

    (here / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "tmp"))
    monkeypatch.setattr(save, "_write", full)
    assert run(["a cat", "-q", *QUICK, "--seed", "1,2", "--batch-size", "2"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "It is safe in" in line]
    assert len(lines) == len(list((here / "tmp").glob("*.png"))) == 2


@pytest.mark.slow
def test_in_a_terminal_the_table_shows_each_step(here: Path) -> None:
    with in_a_terminal("a [red]cat[/]", *QUICK) as (process, screen):
        text = read_until(screen)
        assert process.wait(600) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "a-red-cat-7.png\n"
    for words in ("a [red]cat[/]", "tau1", "structure", "outcome", "1.0000", "3/3", "24/24"):
        assert words in text, words
    before, _, after = text.rpartition("a-red-cat-7.png seed 7")
    assert "of blocks" in before and "of blocks" not in after  # the totals are under the table, once


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_with_130_and_leaves_no_picture(here: Path, presses: int) -> None:
    with in_a_terminal("a cat", "--steps", "2000", "--trace", "t.jsonl") as (process, screen):
        read_until(screen, "full")
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert "Stopped; nothing was saved." in read_until(screen)
        assert process.wait(600) == 130
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert os.listdir(here) == ["t.jsonl"]
    for line in (here / "t.jsonl").read_text().splitlines():
        json.loads(line)


def test_whoever_closes_stdout_early_gets_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "h2gen", "presets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_several_seeds_are_painted_together_where_that_is_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["a cat", *QUICK, "--seed", "1-3", "--sidecar"]
    assert run([*command, "-o", "alone"]) == 0
    capsys.readouterr()
    assert run([*command, "-o", "together", "--batch-size", "2", "--json"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["settings"]["seed"], each["cache"]["passes"]) for each in made] == [(1, 3), (2, 3), (3, 3)]
    for path in sorted((here / "alone").glob("*.png")):
        other = here / "together" / path.name
        assert read_metadata(path).settings == read_metadata(other).settings
        assert other.with_suffix(".toml").exists()
        with Image.open(path) as one, Image.open(other) as two:
            assert np.abs(np.asarray(one).astype(int) - np.asarray(two)).max() <= 1


@pytest.mark.slow
def test_in_a_terminal_the_steps_of_all_that_are_painted_together_are_counted(here: Path) -> None:
    command = ["a cat", *QUICK, "--steps", "6", "--seed", "1,2", "--batch-size", "2"]
    with in_a_terminal(*command) as (process, screen):
        text = read_until(screen)
        assert process.wait(600) == 0
    for words in ("seed 1,2", "12/12", "a-cat-1.png", "a-cat-2.png"):
        assert words in text, words


def test_a_batch_of_no_pictures_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--batch-size", "0"]) == 2
    assert "batch-size is 0" in capsys.readouterr().err
