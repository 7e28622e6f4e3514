"""Videos from the command line: made, described, made again, in batches and in the shell; and bad input in one line."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import h2gen as api
from h2gen.cli.app import run
from h2gen.errors import MetadataError, SettingError
from h2gen.output.metadata import read_metadata
from h2gen.settings.inputs import InputFile
from h2gen.settings.profiles import list_profiles
from h2gen.settings.table import BY_NAME
from tests import small
from tests.cli.programs import h2gen, in_a_terminal, read_until
from tests.output.test_video_file import decoded

DEFAULTS = "width = 64\nheight = 48\nsteps = 3\nguidance = 6.0\nmax_sequence_length = 16\nframes = 9\nfps = 8.0\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("small-video")
    small.hunyuan_video_pipeline(layers=2, single_layers=2).save_pretrained(folder)
    (folder / "defaults.toml").write_text(DEFAULTS)
    return str(folder)


@pytest.fixture(scope="module")
def session(model: str) -> Any:
    return api.load(model, device="cpu")


def frames_of(path: str | Path) -> Any:
    return decoded(Path(path).read_bytes(), Path(path).suffix[1:])[0]


def test_a_video_is_made_in_every_format_and_says_how(model: str, here: Path) -> None:
    common = ("a cat walks", "--model", model, "--seed", "7", "--no-cache", "-q")
    for name in ("cat.mp4", "cat.gif", "cat.webp"):
        done = h2gen(*common, "--out", name, "--frames", "5", "--fps", "12.5")
        assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr
        found = read_metadata(here / name)
        assert (found.settings.frames, found.settings.fps, found.settings.prompt) == (5, 12.5, "a cat walks")
        assert frames_of(name).shape == (5, 48, 64, 3)
    grey = [frames_of(f"cat.{format}") @ (0.2126, 0.7152, 0.0722) for format in ("webp", "mp4", "gif")]
    assert np.abs(grey[1] - grey[0]).mean() < 4 and np.abs(grey[2] - grey[0]).mean() < 12  # they are random colours
    done = h2gen("info", "cat.mp4", "cat.gif", "cat.webp")
    assert done.returncode == 0 and len(re.findall(r"frames +5\n", done.stdout)) == 3
    assert json.loads(h2gen("info", "--json", "cat.mp4").stdout)["settings"]["fps"] == 12.5


def test_messages_about_a_video_call_it_one(model: str, here: Path) -> None:
    done = h2gen("a cat", "--model", model, "--seed", "1,2", "--trace", "t.jsonl", "--dry-run")
    assert "--trace records one video, not 2; leave it out or give one seed." in done.stderr
    done = h2gen("a cat", "--model", model, "--out", "cat.webp", "--preview-file", "cat.webp", "--dry-run")
    assert "cat.webp' is where a video goes; give another file." in done.stderr
    lora = InputFile("style.safetensors", "ab" * 32, None)
    with pytest.raises(MetadataError, match=r"^The video was made with the LoRA 'style.safetensors'"):
        BY_NAME["lora"].files.again("--lora", [lora], None, "video")


def test_a_replay_has_the_same_frames(model: str, here: Path) -> None:
    done = h2gen("a cat walks", "--model", model, "--seed", "7", "--format", "mp4", "--json")
    made = json.loads(done.stdout)
    assert made["path"] == "a-cat-walks-7.mp4" and made["settings"]["frames"] == 9
    assert h2gen("a cat walks", "--model", model, "--seed", "7", "--out", "cat.webp", "-q").returncode == 0
    for name in (made["path"], "cat.webp"):
        again = "again" + Path(name).suffix
        done = h2gen("replay", name, "--model", model, "--out", again)
        assert done.returncode == 0 and "was made" not in done.stderr, done.stderr
        assert np.array_equal(frames_of(again), frames_of(name))
        assert read_metadata(here / again).settings == read_metadata(here / name).settings
    plain = h2gen("replay", "cat.webp", "--model", model)  # in the same format, which is lossless
    assert plain.stdout == "a-cat-walks-7.webp\n"
    assert np.array_equal(frames_of("a-cat-walks-7.webp"), frames_of("cat.webp"))
    assert h2gen("replay", "cat.webp", "--model", model, "--frames", "5", "--out", "short.gif", "-q").returncode == 0
    assert read_metadata(here / "short.gif").settings.frames == 5


def test_a_replay_on_a_picture_model_is_refused(model: str, here: Path) -> None:
    assert h2gen("a cat", "--model", model, "--seed", "7", "--out", "cat.gif", "-q").returncode == 0
    done = h2gen("replay", "cat.gif", "--model", "tiny")
    assert done.returncode == 2 and re.fullmatch(
        r"h2gen: frames is 9, but 'tiny' makes pictures; .*leave it out\.\n", done.stderr
    )


def test_several_seeds_and_an_existing_file(model: str, here: Path) -> None:
    for _ in range(2):
        done = h2gen("a cat", "--model", model, "--seed", "1,2", "--frames", "1", "--out", "cat.mp4", "-q")
        assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(here)) == ["cat-1-2.mp4", "cat-1.mp4", "cat-2-2.mp4", "cat-2.mp4"]
    assert Path("cat-1.mp4").read_bytes() != Path("cat-2.mp4").read_bytes()


@pytest.mark.slow
def test_a_batch_makes_videos_and_continues(model: str, here: Path) -> None:
    Path("p.jsonl").write_text(
        '{"prompt": "a cat", "seed": 7}\n{"prompt": "a dog", "frames": 5, "fps": 4, "seed": 7}\n'
    )
    command = ("batch", "p.jsonl", "--model", model, "--out", "out", "--no-cache")
    done = h2gen(*command)
    names = ["0001-a-cat-7.mp4", "0002-a-dog-7.mp4"]
    assert done.returncode == 0 and done.stdout.split() == [f"out/{name}" for name in names], done.stderr
    assert [len(frames_of(f"out/{name}")) for name in names] == [9, 5]
    assert read_metadata(here / "out" / names[1]).settings.fps == 4
    assert h2gen("a cat", "--model", model, "--seed", "7", "--no-cache", "--out", "one.mp4", "-q").returncode == 0
    assert np.array_equal(frames_of("one.mp4"), frames_of(f"out/{names[0]}"))
    Path("out", names[0]).unlink()
    done = h2gen(*command)
    assert done.returncode == 0 and done.stdout.split() == [f"out/{names[0]}"], done.stderr
    assert "1 of 2 videos already exist: making the other 1." in done.stderr


BAD = [
    (["--frames", "8"], r"--frames is 8, but .* takes 1 plus a multiple of 4; give 5 or 9\."),
    (["--frames", "many"], r"--frames is 'many'; give a whole number from 1 to 1025\."),
    (["--frames", "1029"], r"--frames is 1029; give a whole number from 1 to 1025\."),
    (["--fps", "0"], r"--fps is 0; give a number from 1 to 120\."),
    (["--out", "cat.png"], r"Cannot write videos as \.png files \('cat\.png'\); use \.mp4, \.gif or \.webp\."),
    (["--format", "jpg"], r"--format is 'jpg', and this is a video; choose mp4, gif or webp\."),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_what_a_video_model_refuses_is_one_line_before_anything_is_loaded(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.setattr("h2gen.generation.session.open_session", None)
    done = h2gen("a cat", "--model", model, *options)
    assert done.returncode == 2 and re.fullmatch(f"h2gen: {words}\n", done.stderr), done.stderr
    assert os.listdir(here) == []


@pytest.mark.parametrize("options", [["--frames", "9"], ["--fps", "8"]])
def test_a_picture_model_takes_neither_frames_nor_a_rate(here: Path, options: list[str]) -> None:
    done = h2gen("a cat", *options)
    assert done.returncode == 2 and re.fullmatch(
        rf"h2gen: {options[0]} is {options[1]}, but 'tiny' makes pictures; .*leave it out\.\n", done.stderr
    )


SMALL = ("--size", "32", "--steps", "4", "--frames", "5")


@pytest.mark.slow
def test_videos_are_compared_frame_by_frame_and_played_in_the_report(model: str, here: Path) -> None:
    given = ("--tau1", "9", "--tau2", "9", "--repeat", "1", "--report", "rep")
    done = h2gen("compare", "a cat walks", "--model", model, "--seed", "7", *SMALL, *given)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to("rep").as_posix() for path in Path("rep").rglob("*") if path.is_file()}
    assert {"index.html", "results.json", "a-cat-walks-7-compare.mp4", "a-cat-walks-7-decisions.svg"} <= files
    said = " ".join(done.stdout.split())
    assert "makes a video in" in said and "in the worst frame." in said and "picture" not in said + done.stderr
    found = json.loads(Path("rep/results.json").read_text())
    assert (found["settings"]["frames"], found["settings"]["fps"]) == (5, 8.0)
    names = ("psnr", "ssim", "psnr-frame", "ssim-frame", "flicker")
    assert tuple(metric["name"] for metric in found["metrics"])[:5] == names
    plain, cached = (found["methods"][number]["shots"][0] for number in (0, 1))
    frames = [frames_of(Path("rep") / each["picture"]) for each in (plain, cached)]
    assert frames[0].shape == frames[1].shape == (5, 32, 32, 3) and not np.array_equal(*frames)
    errors = [np.square((one / 255.0) - (other / 255.0)).mean() for one, other in zip(*frames, strict=True)]
    apart = -10 * np.log10(errors)
    assert cached["scores"]["psnr"] == pytest.approx(apart.mean()) and cached["share"] < 1
    assert cached["scores"]["psnr-frame"] == pytest.approx(apart.min())
    assert frames_of("rep/a-cat-walks-7-compare.mp4").shape[0] == 5
    page = Path("rep/index.html").read_text()
    assert "<canvas" in page and '"frames":5' in page and "1 video per method" in page


@pytest.mark.slow
def test_a_frontier_of_videos_is_printed_and_continued(model: str, here: Path) -> None:
    given = ("--budgets", "0.75", "--limit", "2", "--only", "steps,peers", "--against", "taylor", "--log", "log")
    made = []
    for more in ("", "--report"):
        done = h2gen("frontier", "--model", model, *SMALL, *given, *([more, "rep"] if more else []))
        assert done.returncode == 0, done.stderr
        made.append(done)
    assert re.search(r"At 75\W%.*\n.*1 - SSIM +worst +PSNR", made[0].stdout) and " 3 steps" in made[0].stdout
    assert "TaylorSeer" in made[0].stdout and "picture" not in made[0].stdout + made[0].stderr
    assert "videos are already measured" in made[1].stderr and made[1].stdout == made[0].stdout
    found = json.loads(Path("rep/results.json").read_text())
    assert [case["prompt"] for case in found["cases"]] == ["a pig grows", "a rabbit shrinks"]
    kept = sorted(Path("log-pictures").glob("*.npz"))
    with np.load(kept[0]) as file:
        assert file["frames"].shape == (5, 32, 32, 3) and file["fps"] == 8


@pytest.mark.slow
def test_a_profile_of_videos_is_measured_and_used_for_their_number_of_frames(model: str, here: Path) -> None:
    common = ("--model", model, "--size", "32", "--steps", "8", "--frames", "5")
    few = ("--search", "1", "--check", "1", "--budgets", "0.5", "--tries", "0", "--threshold-tries", "1")
    done = h2gen("tune", *common, *few)
    assert done.returncode == 0 and "picture" not in done.stdout + done.stderr, done.stderr
    (profile,) = (path for path in list_profiles() if path.key.frames)
    assert profile.key.frames == 5 and profile.path.name.startswith("small-video0-8-32x32x5-")
    assert {choice.sort for choice in profile.choices} > {"steps"}
    asked = ("a cat", "--model", model, "--size", "32", "--steps", "8", "--fidelity", "0.01", "--dry-run")
    done = h2gen(*asked, "--frames", "5")
    assert done.returncode == 0 and re.search(r"^steps .* profile$", done.stdout, re.M), done.stderr
    assert "to the uncached videos" in done.stderr
    done = h2gen(*asked, "--frames", "9")
    assert done.returncode == 2 and "There is no profile for" in done.stderr and "--frames" not in done.stderr


def test_a_dry_run_of_compare_counts_videos(model: str, here: Path) -> None:
    done = h2gen("compare", "a cat", "--model", model, *SMALL, "--tau1", "0.1", "--dry-run")
    assert done.returncode == 0 and "8 to 12 videos" in done.stdout and "frames" in done.stdout, done.stderr
    done = h2gen("compare", "a cat", "--model", model, "--frames", "6")
    assert done.returncode == 2 and "give 5 or 9" in done.stderr and done.stderr.count("\n") == 1
    assert os.listdir(here) == []


def test_without_av_only_mp4_is_refused(model: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    done = h2gen("a cat", "--model", model)
    assert done.returncode == 2 and "pip install 'h2gen[video]'" in done.stderr and done.stderr.count("\n") == 1
    assert h2gen("a cat", "--model", model, "--seed", "7", "--format", "gif", "-q").stdout == "a-cat-7.gif\n"


def test_a_video_that_cannot_be_encoded_is_kept(model: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any) -> bytes:
        raise ValueError("no luck")

    monkeypatch.setattr("tempfile.tempdir", str(here))
    monkeypatch.setattr("h2gen.output.video_file._mp4", fails)
    done = h2gen("a cat", "--model", model, "--seed", "7", "--out", "out", "-q")
    assert done.returncode == 1 and "could not be encoded as .mp4: no luck. Its frames are safe in" in done.stderr
    assert frames_of("h2gen-a-cat-7.webp").shape == (9, 48, 64, 3)


def test_the_shell_calls_a_video_one(model: str, here: Path) -> None:
    lines = ":again\na cat\n:show\n:set fps 4\n:set fps 12.5\n"
    done = h2gen("shell", "--model", model, "--seed", "7", "--out", "out", input=lines)
    assert done.stderr.splitlines()[0] == "h2gen: There is no video yet to make again; give a prompt."
    assert done.stderr.splitlines()[-2:] == ["fps is now 4", "fps is now 12.5"]
    assert re.search(r"^prompt +a cat +last video$", done.stdout, re.M)


def test_the_shell_changes_the_number_of_frames(model: str, here: Path) -> None:
    done = h2gen("shell", "--model", model, "--seed", "7", input="a cat\n:set frames 5\na dog\n:set frames 6\n")
    assert done.stdout.split() == ["a-cat-7.mp4", "a-dog-7.mp4"], done.stderr
    assert "frames is now 5" in done.stderr and "give 5 or 9" in done.stderr
    assert [len(frames_of(f"a-{name}-7.mp4")) for name in ("cat", "dog")] == [9, 5]


def test_a_dry_run_names_the_file_and_the_frames(model: str) -> None:
    done = h2gen("a cat", "--model", model, "--seed", "7", "--dry-run", "--json")
    found = json.loads(done.stdout)
    assert found["paths"] == ["a-cat-7.mp4"]
    assert found["settings"]["frames"] == {"value": 9, "source": "model default"}


def test_python_has_frames_and_saves_them(session: Any, here: Path) -> None:
    result = session.generate("a cat", seed=7, frames=5, fps=4, no_cache=True, out="out")
    assert result.path == Path("out/a-cat-7.mp4") and result.frames.shape == (5, 48, 64, 3)
    assert np.array_equal(np.asarray(result.image), result.frames[0])
    assert result.save("cat.webp") == Path("cat.webp") and np.array_equal(frames_of("cat.webp"), result.frames)
    assert result.metadata["settings"]["fps"] == 4
    assert result._repr_html_().startswith("<video ")
    with Image.open("cat.webp") as image:
        assert image.n_frames == 5
    with pytest.raises(SettingError, match="give 5 or 9"):
        session.generate("a cat", seed=7, frames=6)


def test_a_preview_is_the_first_frame_in_a_file(model: str, here: Path) -> None:
    command = ("a cat", "--model", model, "--seed", "7", "--frames", "5", "--out", "cat.webp", "-q")
    done = h2gen(*command, "--preview-file", "now.png", "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    with Image.open("now.png") as image:
        assert image.size == (16, 12)
    found = json.loads(done.stdout)["path"]
    assert h2gen(*command, "--out", "plain.webp").returncode == 0
    assert np.array_equal(frames_of(found), frames_of("plain.webp"))


@pytest.mark.parametrize("where", [("--preview-file", "now.png"), ("--preview",)])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_model_for_previews_is_refused_for_a_video_before_it_is_downloaded(
    model: str, here: Path, where: tuple[str, ...], dry: tuple[str, ...]
) -> None:
    done = h2gen("a cat", "--model", model, *where, "--preview-model", "someone/tiny-autoencoder", *dry)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "h2gen: --preview-model decodes pictures, and this model makes videos; leave it out.\n"


def test_a_dry_run_of_a_replay_says_that_settings_are_the_videos(model: str, here: Path) -> None:
    assert h2gen("a cat", "--model", model, "--seed", "7", "--frames", "5", "--out", "cat.webp", "-q").returncode == 0
    done = h2gen("replay", "cat.webp", "--model", model, "--dry-run")
    assert re.search(r"^steps +3 +video$", done.stdout, re.M) and re.search(r"^fps +8 +video$", done.stdout, re.M)
    assert "picture" not in done.stdout + done.stderr
    for shown in (done.stdout, h2gen("info", "cat.webp").stdout):
        assert not re.search(r" $", shown, re.M)


def test_a_picture_shows_itself_as_a_picture(tiny: Any) -> None:
    result = tiny.generate("a cat", seed=7, steps=1, size=64, no_cache=True)
    assert result.frames is None and result._repr_html_() is None and result._repr_png_()


@pytest.mark.slow
def test_the_live_table_says_how_many_frames(model: str, here: Path) -> None:
    Path("m").symlink_to(model)
    with in_a_terminal("a cat", "--model", "./m", "--seed", "7") as (process, terminal):
        seen = read_until(terminal, r"a-cat-7\.mp4 .*\n")
        assert process.wait(600) == 0
    assert "64x48 · 9 frames at 8 fps · 3 steps" in seen


def test_the_help_of_every_command_that_makes_something_has_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["--help"], ["batch", "--help"], ["replay", "--help"], ["shell", "--help"]):
        assert run(command) == 0
        shown = capsys.readouterr().out
        assert "--frames" in shown and "--fps" in shown


def test_show_says_that_a_model_makes_videos(model: str, here: Path) -> None:
    shown = h2gen("models", "show", model).stdout
    assert re.search("^makes videos +from a prompt$", shown, re.M)
    assert re.search(r"^frames +\d+, \d+ per second$", shown, re.M)
    assert re.search("^makes pictures ", h2gen("models", "show", "z-image").stdout, re.M)
