"""``h2gen info`` and ``h2gen replay``: a picture says how it was made, and can be made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from h2gen.cli.app import run
from h2gen.output.metadata import Origin, describe, read_metadata, to_toml
from h2gen.output.save import encode
from h2gen.settings.values import Settings
from tests.cli.programs import h2gen

CAT = ["a cat", "--steps", "5", "--cfg", "2", "--negative", "a dog", "--seed", "7", "--tau1", "0.5", "--size", "96x128"]


@pytest.fixture
def cat(here: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run([*CAT, "-o", "cat.png", "-q"]) == 0
    capsys.readouterr()
    return here / "cat.png"


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def stranger(folder: Path, model: str = "tiny", name: str = "stranger.png", **more: Any) -> str:
    """A picture with metadata from somebody else."""
    settings = Settings("a cat", 7, 64, 64, 2, 1.0, 1.0, "", 16)
    made = Origin(model, "0" * 64, "cuda NVIDIA H100", "float32", "none")
    whole = describe(settings, made, seconds=1.0, summary=None) | more
    path = folder / name
    data = to_toml(whole).encode() if name.endswith(".toml") else encode(Image.new("RGB", (8, 8)), name[-3:], whole)
    path.write_bytes(data)
    return name


def test_a_replay_is_the_same_picture(cat: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "cat.png"]) == 0
    out, err = capsys.readouterr()
    assert out == "a-cat-7.png\n"
    assert "The picture was made" not in err and "is not the one" not in err
    assert np.array_equal(pixels(here / "a-cat-7.png"), pixels(cat))
    one, two = read_metadata(cat), read_metadata(here / "a-cat-7.png")
    assert (one.settings, one.preset, one.content_hash) == (two.settings, two.preset, two.content_hash)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["unipc", "heun"])
def test_the_solver_is_recorded_and_made_with_again(
    cat: Path, here: Path, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run([*CAT, "--solver", solver, "-o", "one.png", "-q"]) == 0
    assert run(["replay", "one.png", "-o", "two.png", "-q"]) == 0
    assert read_metadata(here / "two.png").settings.solver == solver
    assert np.array_equal(pixels(here / "one.png"), pixels(here / "two.png"))
    assert not np.array_equal(pixels(here / "one.png"), pixels(cat))
    monkeypatch.setenv("H2GEN_SOLVER", solver)
    assert run(["replay", "cat.png", "-o", "three.png", "-q"]) == 0
    assert np.array_equal(pixels(here / "three.png"), pixels(cat))


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_of_every_format(here: Path, format: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*CAT, "-o", f"one.{format}", "-q", "--sidecar"]) == 0
    assert run(["replay", f"one.{format}", "-o", f"two.{format}", "-q"]) == 0
    assert run(["replay", "one.toml", "-o", f"three.{format}", "-q"]) == 0
    assert np.array_equal(pixels(here / f"one.{format}"), pixels(here / f"two.{format}"))
    assert np.array_equal(pixels(here / f"one.{format}"), pixels(here / f"three.{format}"))


def test_what_the_user_has_set_for_good_does_not_change_a_replay(cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEPS", "2"), ("CFG", "1"), ("PRESET", "fast"), ("SIZE", "1:1"), ("DTYPE", "bf16")):
        monkeypatch.setenv(f"H2GEN_{name}", value)
    assert run(["replay", "cat.png", "-o", "again.png", "-q"]) == 0
    assert np.array_equal(pixels(cat), pixels(Path("again.png")))


def test_options_change_what_they_name_and_nothing_else(cat: Path) -> None:
    assert run(["replay", "cat.png", "-o", "other.png", "-q", "--seed", "8", "--no-cache", "-p", "an owl"]) == 0
    found, was = read_metadata(Path("other.png")).settings, read_metadata(cat).settings
    assert (found.seed, found.prompt, found.cache.enabled) == (8, "an owl", False)
    assert (found.steps, found.width, found.negative, found.cfg) == (was.steps, was.width, was.negative, was.cfg)
    assert run(["replay", "cat.png", "-o", "plain.png", "-q", "--cfg", "1"]) == 0
    assert read_metadata(Path("plain.png")).settings.negative == ""


def test_a_dry_run_says_what_comes_from_the_picture(cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "cat.png", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["prompt"] == "a cat"
    assert plan["settings"]["steps"] == {"value": 5, "source": "picture"}
    assert plan["settings"]["preset"] == {"value": "balanced", "source": "picture"}


def test_what_is_not_as_it_was_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = stranger(here, versions={"torch": "2.0", "h2gen": "9"})
    assert run(["replay", name, "-o", "again.png"]) == 0
    err = capsys.readouterr().err
    assert "The model 'tiny' is not the one that made the picture" in err
    assert "made on device cuda NVIDIA H100, and this is cpu" in err
    assert "torch 2.0, here" in err and "h2gen 9, here" in err


@pytest.mark.parametrize(
    "model", ["owner/name", "dev", "../secret", "/etc/passwd", "file.safetensors", "x" * 400, "\x1b[31m"]
)
@pytest.mark.parametrize("name", ["stranger.png", "stranger.toml"])
def test_no_model_is_fetched_or_opened_because_a_picture_says_so(
    here: Path, capsys: pytest.CaptureFixture[str], model: str, name: str
) -> None:
    stranger(here, model, name)
    assert run(["replay", name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "\x1b" not in err
    assert "--model" in err and len(err.splitlines()) == 1
    assert os.listdir(here) == [name]
    assert run(["replay", name, "--model", "tiny", "-o", "again.png", "-q"]) == 0


def test_a_model_that_is_the_users_own_choice_is_confirmed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from h2gen.models.catalogue import BUNDLED

    shutil.copytree(BUNDLED, here / "folder" / "mine")
    monkeypatch.setenv("H2GEN_MODEL", str(here / "folder" / "mine"))
    assert run(["a cat", "--steps", "2", "-o", "cat.png", "-q"]) == 0
    assert read_metadata(here / "cat.png").model == "mine"  # no folder of ours
    assert run(["replay", "cat.png", "-o", "again.png", "-q"]) == 0
    assert np.array_equal(pixels(here / "cat.png"), pixels(here / "again.png"))


def test_info_shows_it_and_loads_no_model(cat: Path) -> None:
    code = (
        "import sys\nfrom h2gen.cli.app import run\nrun(sys.argv[1:])\n"
        "heavy = ('torch', 'diffusers', 'transformers', 'numpy')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "info", "cat.png"], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    for words in ("a cat", "tiny", "96x128", "a dog", "balanced", "0.5", "torch", "10 passes: "):
        assert words in done.stdout, words


def test_info_as_json_is_an_object_a_picture(cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "cat.png", "cat.png", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == ["cat.png", "cat.png"]
    assert lines[0]["settings"]["tau1"] == 0.5


def test_info_goes_on_after_a_picture_that_says_nothing(
    cat: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(here / "plain.png")
    assert run(["info", "plain.png", "cat.png", "gone.png"]) == 2
    out, err = capsys.readouterr()
    assert "a cat" in out
    assert "has no h2gen metadata" in err and "There is no file 'gone.png'" in err
    assert len(err.splitlines()) == 2


def test_a_strangers_words_are_shown_and_not_obeyed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = stranger(here, notes={"[red]x": "\x1b[31m[/]", "y" * 100: ["z" * 1000]}, made="\x1b]0;title\x07")
    assert run(["info", name]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "[red]x" in out


def test_keys_of_a_stranger_do_not_reach_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = stranger(here, notes={"\x1b[31mkey\x07": 1}, versions={"\x1b[2J": "1"})
    with Image.open(here / name) as image:
        whole = json.loads(image.info["h2gen"])
    whole["settings"]["\x1b]0;title\x07"] = 3
    whole["seconds"], whole["cache"] = 10**400, {"steps": 1, "full": 1, "all_reused": 0, "share": 10**400}
    (here / name).write_bytes(encode(Image.new("RGB", (8, 8)), "png", whole))
    assert run(["info", name]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "[31mkey" in out


def test_info_shows_whatever_the_file_beside_a_picture_holds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = stranger(here, name="stranger.toml", notes={"a": "b"})
    with (here / name).open("a") as file:
        file.write("day = 2026-01-02\nodd = [nan, {time = 03:04:05}]\n")
    assert run(["info", name]) == 0
    assert "2026-01-02" in capsys.readouterr().out
    assert run(["info", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"]["odd"] == ["nan", {"time": "03:04:05"}]


def test_a_prompt_that_is_no_text_is_told_before_a_model_is_loaded(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Settings("a cat", 7, 64, 64, 2).to_json() | {"prompt": "a\ud800"}
    name = stranger(here, name="stranger.jpg", settings=odd)
    assert run(["replay", name]) == 2
    err = capsys.readouterr().err
    assert "The prompt is not UTF-8 text" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("option", [["--count", "0"], ["--seed", ""], ["-n", "-1"]])
def test_replay_refuses_seeds_and_counts_that_are_none(
    here: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert run(["replay", stranger(here), *option]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "give" in err and len(err.splitlines()) == 1


def test_without_metadata_a_picture_says_nothing(here: Path) -> None:
    assert run(["a cat", "--steps", "1", "-q", "--no-metadata", "-o", "a.png"]) == 0
    assert run(["info", "a.png"]) == 2


def test_several_seeds_are_several_pictures_each_with_its_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--steps", "2", "--cfg", "1", "--json"]
    assert run(["a cat", "--seed", "3,5-6", *quick]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["path"], line["settings"]["seed"]) for line in lines] == [
        (f"a-cat-{seed}.png", seed) for seed in (3, 5, 6)
    ]
    assert [read_metadata(here / line["path"]).settings.seed for line in lines] == [3, 5, 6]
    assert run(["a cat", "--seed", "5", "-n", "2", "-o", "x.png", *quick]) == 0
    assert [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()] == ["x-5.png", "x-6.png"]
    assert np.array_equal(pixels(here / "x-5.png"), pixels(here / "a-cat-5.png"))
    assert run(["a cat", "-n", "2", "--trace", "t.jsonl"]) == 2


def test_a_count_goes_on_from_the_pictures_own_seed(cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "cat.png", "-n", "2", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["seed"]["value"] == "7,8"
    assert run(["replay", "cat.png", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for setting in ("prompt", "seed"):
        assert next(line for line in out.splitlines() if line.startswith(setting)).rstrip().endswith("picture")


def test_replay_needs_a_picture(here: Path) -> None:
    done = h2gen("replay", "gone.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "h2gen: There is no file 'gone.png'; check the path.\n"


def test_the_help_says_what_comes_from_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option, default in {"--seed": "the picture's", "--model": "the picture's", "--offload": "auto"}.items():
        assert f"[default: {default}]" in text.partition(f"{option} ")[2][:140], option
    assert "Cache (default: the picture's):" in text and "random" not in text
