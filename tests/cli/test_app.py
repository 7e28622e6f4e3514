"""The commands put together: help, version, start-up, and the small commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.nn.modules.module import register_module_forward_pre_hook

from h2gen import __version__
from h2gen.cli.app import run
from h2gen.cli.commands import COMMANDS
from h2gen.models.catalogue import BUNDLED
from tests.cli.programs import piped

HEAVY = ("torch", "diffusers", "transformers", "PIL", "yaml", "numpy", "huggingface_hub")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["presets"], ["presets", "paper"], ["help", "batch"], ["a cat", "--dry-run"], [""], []],
)
def test_what_needs_no_model_loads_neither_torch_nor_pil(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom h2gen.cli.app import run\nrun(sys.argv[1:])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_help_loads_no_families_and_no_cryptography() -> None:
    code = "import sys\nfrom h2gen.cli.app import run\nrun(['--help'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"h2gen.families", "h2gen.models.catalogue", "h2gen.toml", "hashlib"} & set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["a cat", "-h"], ["--preset", "fast", "--help"]])
def test_help_shows_the_commands_and_then_the_options_by_how_often_they_are_used(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0
    out = capsys.readouterr().out
    words = [
        "Commands:\n",
        "  batch ",
        "  bench ",
        "  --seed ",
        "-m, --model ",
        "-o, --out ",
        "  --preset ",
        "  --cfg ",
    ]
    words += ["  --dtype ", "  --dry-run ", "  --tau1 ", "  --version "]
    places = [out.index(word) for word in words]
    assert places == sorted(places)
    assert out.count("Usage:") == out.count("\nOptions:") == out.count("-h, --help") == 1


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_whole_at_every_width_and_names_no_types(
    command: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert run([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "<" not in out and "{FILE" not in out
    assert not [line for line in out.splitlines() if re.match(r"  [a-z]+ .*\.\.\.$", line)]


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "batch"]) == 0
    assert capsys.readouterr().out.startswith("Usage: h2gen batch [OPTIONS] FILE...\n")
    assert run(["help", "presets", "show"]) == 0
    assert capsys.readouterr().out.startswith("Usage: h2gen presets show [OPTIONS] NAME\n")
    assert run(["help", "btach"]) == 2
    assert "There is no command 'btach'; did you mean 'batch'?" in capsys.readouterr().err


def test_alone_it_shows_in_a_few_lines_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 12
    assert 'h2gen "a cat"' in out and "h2gen help COMMAND" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"h2gen {__version__}\n"


def test_presets_are_listed_with_what_decides_and_what_was_measured(
    capsys: pytest.CaptureFixture[str], own_home: Path
) -> None:
    folder = own_home / ".config" / "h2gen" / "presets"
    assert run(["presets"]) == 0
    rows = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["preset"] == ["preset", "tolerance", "tau1", "tau2", "guards", "speed", "PSNR", "purpose"]
    assert rows["balanced (default)"][2:9] == ["0.006", "-", "-", "-", "2.15x", "54.0", "dB"]
    assert rows["paper"][1:6] == ["-", "0.15", "0.22", "-", "2.37x"]
    assert rows["off"][1:7] == ["-"] * 6
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(
        "tau1 = 0.1\ntau2 = 0\nwarmup_steps = 2\nbudget = true\n[figures]\nspeedup = 'x'\n"
    )
    assert run(["presets"]) == 0
    (mine,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("mine"))
    assert mine.split() == ["mine", "-", "0.1", "-", "warmup", "2,", "budget", "-", "-"]


@pytest.mark.parametrize("columns", [50, 70])
def test_in_a_narrow_terminal_presets_and_dry_runs_cut_no_values(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("h2gen.cli.console.stdout", "h2gen.cli.views.request.stdout"):
        monkeypatch.setattr(module, lambda: Console(width=columns))
    assert run(["presets"]) == 0 and run(["a cat", "--plan", "F" * 28, "--seed", "7", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns and "\u2026" not in out
    assert "balanced (default)" in out and "2.15x" in out and "max-sequence-length" in out
    assert out.count("F") >= 28


@pytest.mark.parametrize("words", [[], ["list"], ["ls"]])
def test_presets_lists_them_all(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", *words]) == 0
    out = capsys.readouterr().out
    for name in ("paper", "quality", "balanced (default)", "fast", "off"):
        assert name in out


@pytest.mark.parametrize("words", [["show", "paper"], ["paper"]])
def test_presets_show_prints_the_file(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", *words]) == 0
    assert "tau1 = 0.15" in capsys.readouterr().out


def test_models_lists_the_aliases_with_licence_and_whether_they_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    out = capsys.readouterr().out
    for words in ("tiny", "dev", "schnell", "krea", "klein-4b", "flux2-dev", "Apache-2.0", "gated"):
        assert words in out


def test_models_shows_one_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "schnell"]) == 0
    shown = capsys.readouterr().out
    assert run(["models", "schnell"]) == 0
    assert capsys.readouterr().out == shown
    assert "1024x1024" in shown


def test_models_path_prints_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "path", "tiny"]) == 0
    assert capsys.readouterr().out == f"{BUNDLED}\n"


@pytest.mark.slow
def test_bench_measures_steps_by_outcome(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    def passes(module: torch.nn.Module, _given: object) -> None:
        nonlocal now
        now += type(module).__name__ == "FluxAttention"  # of which every block has one

    monkeypatch.setattr("h2gen.cache.stopwatch.time", SimpleNamespace(perf_counter=clock))
    with register_module_forward_pre_hook(passes):
        assert run(["bench", "--steps", "5", "--repeat", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["blocks"] == 24
    assert report["image_tokens"] == 64
    assert report["estimated_speedup"] == pytest.approx(5 * 24 / (2 * 24 + 3 * 2))
    assert all(report[name] > 0 for name in ("plain", "full", "detail_reused", "all_reused", "skipped", "checks"))
    times = [report[name] for name in ("skipped", "all_reused", "detail_reused", "full")]
    assert times == sorted(times) and [round(each) for each in times] == [0, 2, 9, 24]
    assert run(["bench", "--steps", "5", "--repeat", "1"]) == 0
    out = capsys.readouterr().out
    assert "all reused" in out and "skipped" in out and "; 1 run of 5 steps\n" in out


@pytest.mark.slow
def test_bench_measures_quantized_weights(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    given = ["--steps", "5", "--repeat", "1", "--tokens", "16"]
    assert run(["bench", *given, "--quantize", "w8a8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == 8_852_528 and report["plain"] > 0
    assert run(["bench", *given, "--quantize", "int8"]) == 0
    assert capsys.readouterr().out.startswith("tiny in int8: 9 M parameters")


@pytest.mark.slow
def test_bench_of_random_weights_is_silent_about_packages_that_it_does_not_use() -> None:
    # In a process of its own: here they have been imported, and warn no more.
    done = piped("bench", "--random", "--tokens", "1", "--ways", "off", "--repeat", "1")
    assert (done.returncode, done.stderr) == (0, "Loading and measuring; do not use the machine meanwhile.\n")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--ways", "off"], "--quantize cannot be used with --ways; name it as a way: --ways nf4."),
        (["--paper"], "--quantize cannot be used with --paper; leave it out."),
    ],
)
def test_bench_quantizes_only_where_it_times_steps(
    more: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--quantize", "nf4", *more]) == 2
    assert line in capsys.readouterr().err


def test_a_way_that_the_device_does_not_compute_in_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr("h2gen.evaluation.bench.find_subject", lambda *_args, **_given: pytest.fail("loaded"))
    assert run(["bench", "--device", "cpu", "--ways", "off,int4"]) == 2
    assert "--ways int4 does not run on the device 'cpu'; choose from int8, " in capsys.readouterr().err
