"""``h2gen batch``: many pictures, and none is lost, whatever happens to the program."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from h2gen.batches.journal import Journal
from h2gen.cli.app import run
from h2gen.output.metadata import read_metadata
from h2gen.settings.table import MOST_STEPS
from tests import loras, small
from tests.cli.programs import alive, h2gen, in_a_terminal, read_until, started, wait_for

UMASK = os.umask(0o022)
os.umask(UMASK)
QUICK = ["--steps", "3", "--cfg", "1", "--preset", "paper"]
UNENDING = {"steps": MOST_STEPS}  # a minute or more


def prompts(here: Path, *lines: str, name: str = "p.txt") -> str:
    (here / name).write_text("\n".join(lines) + "\n")
    return name


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def events(folder: Path) -> Iterator[dict[str, Any]]:
    for line in (folder / "h2gen-batch.jsonl").read_text().splitlines():
        yield json.loads(line)


def test_a_picture_of_every_prompt_and_the_same_command_again_makes_nothing(
    here: Path, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = prompts(here, "a cat", "# no", "a red apple")
    assert run(["batch", file, "-o", "out", "--seed", "1,2", *QUICK]) == 0
    out, err = capsys.readouterr()
    names = ["0001-a-cat-1.png", "0002-a-cat-2.png", "0003-a-red-apple-1.png", "0004-a-red-apple-2.png"]
    assert out.splitlines() == [f"out/{name}" for name in names]
    assert [path.name for path in pictures(here / "out")] == names
    assert "\n4 made; " in err and "1/4" in err and "4/4" in err
    assert "\x1b" not in err

    # Made alone, each is the same picture.
    settings = read_metadata(here / "out" / names[3]).settings
    assert settings.prompt == "a red apple" and settings.seed == 2
    assert np.array_equal(pixels(here / "out" / names[3]), np.asarray(tiny.run(settings).image))

    assert run(["batch", file, "-o", "out", "--seed", "1,2", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "4 of 4 pictures already exist" in err
    assert len(pictures(here / "out")) == 4


def test_truncated_prompts_are_named_and_beyond_the_first_counted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = ", with a green tractor beside a house, and a very small red apple, on a yellow background"
    things = ["cat", "dog", "fox", "owl"]
    file = prompts(here, "a cat", *(f"a {thing} beside a blue car above two apples{end}" for thing in things))
    quick = ["--steps", "1", "--cfg", "1", "--size", "64x64"]
    assert run(["batch", file, "--seed", "1,2", "--json", *quick]) == 0
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if "truncated" in line]
    assert [line.split(":")[1] for line in told[:3]] == ["2", "3", "4"]
    assert "on a yellow background'" in told[0]
    assert told[3:] == ["4 prompts were truncated; 'left_out' in --json and the metadata has the missing part."]
    left = [json.loads(line).get("left_out") for line in out.splitlines()]
    assert left[:2] == [None, None] and all(end.endswith(each["prompt"]) for each in left[2:])


def test_prompts_read_otherwise_than_meant_are_told_before_they_are_made(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = prompts(here, "a cat", "a (big:1.3) cat", "a (red:1.2) dog")
    assert run(["batch", file, "--dry-run"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "plain words" in line]
    weights = "'(big:1.3)' is read as plain words: prompt weights are not supported."
    assert told == [f"p.txt:2: {weights} The same applies to 1 more."]


@pytest.mark.slow
def test_pictures_are_made_together_where_that_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = prompts(here, "a cat", "a red apple")
    command = ["batch", file, "--seed", "1,2", "--name", "{index}", *QUICK]
    assert run([*command, "-o", "alone"]) == 0
    assert run([*command, "-o", "together", "--batch-size", "3"]) == 0
    assert "\n4 made; " in capsys.readouterr().err
    for path in pictures(here / "alone"):
        other = here / "together" / path.name
        assert read_metadata(path).settings == read_metadata(other).settings
        assert np.abs(pixels(path).astype(int) - pixels(other)).max() <= 1


@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_batch_of_no_pictures_is_refused(here: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch", prompts(here, "a cat"), "--batch-size", size]) == 2
    assert f"batch-size is {size}" in capsys.readouterr().err


@pytest.mark.slow
def test_only_what_is_missing_is_made_and_redo_makes_all(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = prompts(here, "a cat", "a dog")
    command = ["batch", file, "-o", "out", "--name", "{slug}", *QUICK]
    assert run(command) == 0
    before = pixels(here / "out" / "a-cat.png")
    (here / "out" / "a-cat.png").unlink()
    capsys.readouterr()
    assert run([*command, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["path"] == "out/a-cat.png"
    assert json.loads(line)["cache"]["passes"] == 3
    assert np.array_equal(pixels(here / "out" / "a-cat.png"), before)
    assert run([*command, "--redo", "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == ["out/a-cat-2.png", "out/a-dog-2.png"]


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = prompts(here, "a cat", "a [red]dog[/]")
    assert run(["batch", file, "-o", "out", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "to make" in out and "a [red]dog[/]" in out and len(out.splitlines()) == 2
    assert "0001-a-cat-" in out and ".png" in out
    assert run(["batch", file, "-o", "out", "--dry-run", "--json", "--seed", "5"]) == 0
    assert [json.loads(line)["settings"]["seed"] for line in capsys.readouterr().out.splitlines()] == [5, 5]
    assert os.listdir(here) == [file]


def test_entries_override_settings_and_notes_and_sidecars_say_so(here: Path) -> None:
    lines = [
        {"caption": ["a cat", "x"], "steps": 2, "size": "64x96", "file": "1.jpg", "name": "tom"},
        {"caption": "a dog"},
    ]
    file = prompts(here, *map(json.dumps, lines), name="p.jsonl")
    assert run(["batch", file, "--prompt-key", "caption", "-o", "out", "--sidecar", "--format", "webp", *QUICK]) == 0
    found = read_metadata(here / "out" / "tom.webp")
    assert (found.settings.width, found.settings.height, found.settings.steps) == (64, 96, 2)
    assert found.everything["notes"]["file"] == "1.jpg" and found.everything["notes"]["source"] == "p.jsonl:1"
    assert read_metadata(here / "out" / "tom.toml").settings == found.settings


def test_a_prompt_file_from_stdin(here: Path) -> None:
    done = h2gen("batch", "-", "-o", "out", "--no-metadata", *QUICK, input="a cat\n")
    assert done.returncode == 0, done.stderr
    (path,) = pictures(here / "out")
    assert f"out/{path.name}\n" == done.stdout
    assert h2gen("info", str(path)).returncode == 2


BAD: list[tuple[list[str], str]] = [
    (["batch"], "See 'h2gen batch --help'"),
    (["batch", "gone.txt"], "gone.txt: there is no such file"),
    (["batch", "a cat"], "leave out the word 'batch'"),
    (["batch", "p.txt", "-o", "a.png"], "a batch needs a folder"),
    (["batch", "p.txt", "-o", "p.txt/x"], "Cannot write to the folder"),
    (["batch", "p.txt", "--shard", "0/2"], "such as 3/16"),
    (["batch", "p.txt", "--name", "../x"], "leave out the folder"),
    (["batch", "p.txt", "--name", "{sed}"], "did you mean 'seed'"),
    (["batch", "p.txt", "--seed", "1,2", "-n", "2"], "one seed, or no count"),
    (["batch", "p.txt", "--gpus", "0", "--device", "cpu"], "contradict each other"),
    (["batch", "p.txt", "--gpus", "7"], "CUDA"),
    (["batch", "p.txt", "--gpus", "0,,1"], "give all, or numbers"),
    (["batch", "p.txt", "--gpus", "zero"], "no device 'zero'"),
    (["batch", "p.txt", "--steps", "0"], "--steps is 0"),
    (["batch", "p.txt", "--model", "nonesuch"], "no model called"),
    (["batch", "p.txt", "--format", "gif"], "--format is 'gif', and this is a picture; choose png, jpg or webp"),
    (["batch", "bad.jsonl", "p.txt"], "bad.jsonl:2: steps is 'x'"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_ends_in_one_clear_line_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    prompts(here, "a cat")
    prompts(here, '{"prompt": "a"}', '{"prompt": "a", "steps": "x"}', name="bad.jsonl")
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1 and err.startswith("h2gen: ")
    assert sorted(os.listdir(here)) == ["bad.jsonl", "p.txt"]


def test_what_would_be_the_same_picture_is_made_once_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = prompts(here, "a cat", "a  cat", "a dog")
    assert run(["batch", file, "-o", "out", "--seed", "1", *QUICK]) == 0
    assert "1 picture is a duplicate of another" in capsys.readouterr().err
    assert len(pictures(here / "out")) == 2


@pytest.mark.slow
def test_shards_divide_the_work_and_the_whole_knows_their_pictures(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = prompts(here, "a cat", "a dog", "an owl")
    for shard, count in (("1/2", 2), ("2/2", 1)):
        assert run(["batch", file, "-o", "out", "--shard", shard, "-q", *QUICK]) == 0
        assert len(capsys.readouterr().out.splitlines()) == count
    assert run(["batch", file, "-o", "out", *QUICK]) == 0
    assert "3 of 3 pictures already exist" in capsys.readouterr().err
    assert [path.name[:4] for path in pictures(here / "out")] == ["0001", "0002", "0003"]


def test_a_second_run_of_the_same_part_says_so_and_stops(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = prompts(here, "a cat")
    (here / "out").mkdir()
    with Journal(here / "out", "1of2"):
        assert run(["batch", file, "-o", "out", "--shard", "1/2", *QUICK]) == 2
        assert "Another run is working in 'out'" in capsys.readouterr().err
        assert run(["batch", file, "-o", "out", "--shard", "2/2", *QUICK]) == 0


@pytest.mark.slow
def test_a_job_that_fails_is_listed_and_the_run_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether a LoRA's layers are the model's, only the loaded model can say."""
    small.flux2_klein_pipeline().save_pretrained(here / "klein")
    loras.save_smallest(here / "other.safetensors")
    lines = [
        {"prompt": "a cat", "lora": "other.safetensors", "mood": "calm"},
        {"prompt": "a dog"},
        {"prompt": "an {owl}", "lora": "other.safetensors", "seed": 5},
    ]
    file = prompts(here, *map(json.dumps, lines), name="p.jsonl")
    command = ["-m", "klein", "-o", "out", "--steps", "2", "--size", "64x64", "--max-sequence-length", "32"]
    assert run(["batch", file, *command, "--cfg", "1"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "a-dog" in out
    assert "p.jsonl:1: The LoRA 'other.safetensors' does not fit this FLUX.2: " in err
    assert "2 of 3 pictures failed; they are listed in 'out/h2gen-failures.jsonl'" in err
    listed = [json.loads(line) for line in (here / "out" / "h2gen-failures.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["source"]) for line in listed] == [("a cat", "p.jsonl:1"), ("an {owl}", "p.jsonl:3")]
    assert "does not fit this FLUX.2" in listed[0]["error"] and listed[0]["mood"] == "calm"
    if os.name == "posix":
        assert stat.S_IMODE((here / "out" / "h2gen-failures.jsonl").stat().st_mode) == 0o666 & ~UMASK

    # The list is a prompt file: the same jobs, with the same names, which fail again.
    shutil.copy(here / "out" / "h2gen-failures.jsonl", here / "again.jsonl")
    assert run(["batch", "again.jsonl", *command, "--dry-run", "--json"]) == 0
    assert [json.loads(line)["settings"]["seed"] for line in capsys.readouterr().out.splitlines()] == [
        line["seed"] for line in listed
    ]
    assert run(["batch", file, *command, "--cfg", "1"]) == 1
    assert "1 of 3 pictures already exist" in capsys.readouterr().err

    # When nothing fails any more, the list is removed.
    file = prompts(here, '{"prompt": "a dog"}', name="p.jsonl")
    assert run(["batch", file, *command, "--cfg", "1"]) == 0
    assert not (here / "out" / "h2gen-failures.jsonl").exists()


@pytest.mark.slow
def test_a_failure_is_tried_once_more(here: Path, tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    import h2gen as package

    session = package.load("tiny")
    with torch.no_grad():
        session.pipe.transformer.proj_out.bias.fill_(float("nan"))
    session.pipe.save_pretrained(here / "nan")
    file = prompts(here, "a cat")
    assert run(["batch", file, "-m", "nan", "-o", "out", "--size", "64x64", "--max-sequence-length", "16", *QUICK]) == 1
    err = capsys.readouterr().err
    assert err.count("p.txt:1: The picture came out as NaN") == 2
    assert err.count("trying once more") == 1 and err.count("giving up") == 1
    assert [event["event"] for event in events(here / "out")] == ["failed"]


def test_a_model_that_cannot_be_loaded_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.flux_pipeline().save_pretrained(here / "broken")
    (here / "broken" / "vae" / "config.json").write_text("{")
    capsys.readouterr()
    assert run(["batch", prompts(here, "a cat"), "-m", "broken", "-o", "out", "-q"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "status"),
    [([signal.SIGINT], 130), ([signal.SIGINT] * 2, 130), ([signal.SIGINT] * 3, 130), ([signal.SIGTERM], 143)],
)
def test_a_run_that_is_stopped_keeps_what_is_made_and_can_go_on(
    here: Path, signals: list[signal.Signals], status: int
) -> None:
    later = {} if signals == [signal.SIGINT] else UNENDING  # whether its current picture is to be finished
    lines = [{"prompt": f"prompt {n}", **(later if n else {})} for n in range(30)]
    file = prompts(here, *map(json.dumps, lines), name="p.jsonl")
    command = ["batch", file, "-o", "out", "--steps", "60", "--cfg", "1", "--preset", "paper"]
    words = ["after the current picture", "Stopping after this step", ""]
    words = words[1:] if signals == [signal.SIGTERM] else words
    with open(here / "err", "w+") as errors, started(*command, stderr=errors) as process:
        wait_for(lambda: pictures(here / "out"))
        mine = process.workers()
        assert mine
        if len(signals) == 3:  # the second one must not end the run before the third comes
            os.kill(mine[0], signal.SIGSTOP)
        for number, said in zip(signals, words, strict=False):
            process.send_signal(number)
            wait_for(lambda said=said: said in (here / "err").read_text())
        out, _ = process.communicate(timeout=600)
        err = (here / "err").read_text()
        assert process.returncode == status, err
        assert "Traceback" not in err
    wait_for(lambda: not any(map(alive, mine)))
    made = pictures(here / "out")
    assert 1 <= len(made) < 30
    assert out.splitlines() == [f"out/{path.name}" for path in made]
    assert err.splitlines()[-1].startswith(
        f"h2gen: Stopped. {30 - len(made)} pictures left; run the same command to continue."
    )
    assert "nothing was saved" not in err
    for path in made:
        assert pixels(path).shape == (128, 128, 3)
    assert not list((here / "out").glob("*.partial"))


@pytest.mark.slow
def test_killed_at_any_instant_a_run_loses_at_most_the_picture_in_hand(here: Path) -> None:
    count = 12
    file = prompts(here, *(f"prompt {n}" for n in range(count)))
    command = ["batch", file, "-o", "out", "--sidecar", *QUICK]
    chance = random.Random(5)
    for _ in range(4):
        before = len(pictures(here / "out"))
        with started(*command) as process:
            wait_for(lambda before=before: len(pictures(here / "out")) > before or process.returncode is not None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.random() * 0.3)
            mine = process.workers()
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_for(lambda mine=mine: not any(map(alive, mine)))  # a worker whose parent has died ends by itself
        for path in pictures(here / "out"):
            assert pixels(path).shape == (128, 128, 3)
    done = h2gen(*command)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (here / "out").glob("*.toml")} == {path.stem for path in pictures(here / "out")}
    made = pictures(here / "out")
    assert [path.name[:4] for path in made] == [f"{n:04}" for n in range(1, count + 1)]  # none missing, none twice
    assert not list((here / "out").glob(".*partial"))
    assert h2gen(*command).stdout == ""


CAN_MOUNT = (
    shutil.which("unshare") is not None
    and subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode
    == 0
)


@pytest.mark.slow
@pytest.mark.skipif(not CAN_MOUNT, reason="needs a file system of its own to fill")
def test_a_full_disk_stops_the_run_cleanly_and_the_picture_in_hand_is_safe(here: Path) -> None:
    file = prompts(here, *(f"prompt {n}" for n in range(8)))
    (here / "out").mkdir()
    (here / "temporary").mkdir()
    script = f"""
mount -t tmpfs -o size=64k none out
export TMPDIR={here}/temporary
{sys.executable} -m h2gen batch {file} -o out {" ".join(QUICK)}
echo "status $?"
ls -a out
mount -o remount,size=10m out
{sys.executable} -m h2gen batch {file} -o out -q {" ".join(QUICK)}
echo "status $?"
cp out/* kept
"""
    (here / "kept").mkdir()
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert "status 1" in done.stdout and "status 0" in done.stdout, done.stdout + done.stderr
    assert "No space left on device" in done.stderr and "It is safe in" in done.stderr
    assert "run the same command to continue" in done.stderr
    assert "partial" not in done.stdout
    assert len(list((here / "temporary").glob("h2gen-*.png"))) == 1
    assert [path.name[:4] for path in pictures(here / "kept")] == [f"{n:04}" for n in range(1, 9)]
    for path in pictures(here / "kept"):
        assert pixels(path).shape == (128, 128, 3)


@pytest.mark.slow
def test_in_a_terminal_the_first_of_those_made_together_is_shown_and_all_are_counted(here: Path) -> None:
    file = prompts(here, "a cat", "a dog")
    command = ["batch", file, "-o", "out", "--steps", "12", "--cfg", "1", "--seed", "7", "--batch-size", "2"]
    with in_a_terminal(*command) as (process, screen):
        text = read_until(screen)
        assert process.wait(600) == 0
    for words in ("a cat", "seed 7 and 1 more", "/24", "0/2 pictures", "error", "2 made"):
        assert words in text, words


@pytest.mark.slow
def test_in_a_terminal_progress_is_above_and_the_picture_in_hand_beneath(here: Path) -> None:
    file = prompts(here, "a [red]cat[/]", "a dog")
    with in_a_terminal("batch", file, "-o", "out", "--steps", "12", "--cfg", "1") as (process, screen):
        text = read_until(screen)
        assert process.wait(600) == 0
    for words in ("a [red]cat[/]", "0/2 pictures", "1/2 pictures", "error", "outcome", "left", "2 made"):
        assert words in text, words
