"""``h2gen tune``, and the --speedup and --fidelity that it makes possible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from h2gen.cache import CacheConfig
from h2gen.cli.app import run
from h2gen.models import resolve
from h2gen.models.content_hash import content_hash
from h2gen.output.metadata import read_metadata
from h2gen.settings.profiles import (
    Choice,
    Figures,
    Profile,
    ProfileKey,
    file_name,
    list_profiles,
    user_folder,
    write_profile,
)
from h2gen.settings.table import SORTS
from tests.cli.programs import h2gen, in_a_terminal, read_until, started, wait_for

SMALL = ["--steps", "10", "--cfg", "1"]
QUICK = ["tune", *SMALL, "--search", "1", "--check", "2", "--budgets", "0.5,0.3", "--tries", "3"]
QUICK += ["--threshold-tries", "3"]
LEAST = ["tune", "--steps", "8", "--size", "64x64", "--cfg", "1", "--search", "1", "--check", "1", "--budgets", "0.5"]
LEAST += ["--tries", "1", "--threshold-tries", "1"]


def figures(speedup: float, ssim: float, share: float | None = None) -> Figures:
    return Figures(share or 1 / speedup, 0.1, speedup, ssim, ssim - 0.05, 30.0, 25.0)


@pytest.fixture
def curve() -> Profile:
    """A profile of the bundled model at 10 steps, with a plan, a policy, and fewer steps of another solver."""
    situation = ProfileKey("tiny", content_hash(resolve("tiny")), 10, 128, 128, "plain")
    choices = (
        Choice("3 steps, UniPC", 3, "unipc", CacheConfig(0, 0), figures(3.2, 0.9, 0.3)),
        Choice(
            "5 of 10 steps, 5 skipped", 10, "own", CacheConfig(0, 0, forecast=1, plan="FFSFSFSSFS"), figures(2, 0.96)
        ),
        Choice("thresholds 0.1", 10, "own", CacheConfig(0.1, 0.1, forecast=1), figures(1.2, 0.99)),
    )
    profile = Profile(user_folder() / file_name(situation), situation, choices, {"pictures": 12})
    write_profile(profile)
    return profile


def settings(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """What a dry run would make, and its other output."""
    assert run(["a cat", *SMALL, *arguments, "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["settings"]
    return {name: item["value"] for name, item in found.items()}, captured.err


def test_a_speed_takes_the_closest_that_is_fast_enough(curve: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    chosen, said = settings(capsys, "--speedup", "2")
    assert (chosen["plan"], chosen["steps"], chosen["solver"]) == ("FFSFSFSSFS", 10, "own")
    assert "preset" not in chosen
    assert "Using 5 of 10 steps, 5 skipped: 50% of the blocks of 10 steps, est. 2.00x (2.0x when measured)" in said
    assert "a mean SSIM of 0.960 to the uncached pictures (0.910 for the worst of 12)." in said


@pytest.mark.parametrize(
    ("goal", "policy", "label", "against"),
    [
        (("--speedup", "1.1"), "thresholds", "thresholds 0.1", "At this speed nothing in the profile is better."),
        (("--speedup", "1.1"), "plan", "5 of 10 steps, 5 skipped", "At this speed the best of all is thresholds 0.1: "
         "1.2x with a mean SSIM of 0.9900 and 30.0 dB, against 2.0x with a mean SSIM of 0.9600 and 30.0 dB."),
        (("--speedup", "2"), "steps", "3 plain steps of UniPC", "At this speed the best of all is 5 of 10 steps, 5 "
         "skipped: 2.0x with a mean SSIM of 0.9600 and 30.0 dB, against 3.2x with a mean SSIM of 0.9000 and 30.0 dB."),
        (("--fidelity", "0.95"), "thresholds", "thresholds 0.1", "At this SSIM the best of all is 5 of 10 steps, 5 "
         "skipped: 2.0x with a mean SSIM of 0.9600 and 30.0 dB, against 1.2x with a mean SSIM of 0.9900 and 30.0 dB."),
    ],
)  # fmt: skip
def test_a_policy_limits_the_choice_to_its_sort_and_is_compared_with_the_best(
    curve: Profile,
    capsys: pytest.CaptureFixture[str],
    goal: tuple[str, str],
    policy: str,
    label: str,
    against: str,
) -> None:
    _, said = settings(capsys, *goal, "--policy", policy)
    using, compared = said.splitlines()[-2:]
    assert using.startswith(f"Using {label}: ") and "because" not in using
    assert compared == against


def test_fewer_steps_of_a_better_solver_are_said_to_be_no_cache(
    curve: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, said = settings(capsys, "--speedup", "3")
    assert (chosen["steps"], chosen["solver"], chosen["plan"], chosen["tau1"]) == (3, "unipc", "", 0)
    assert "Using 3 plain steps of UniPC, because at this speed no cache is closer: 30% of the blocks of 10" in said


def test_a_fidelity_takes_the_fastest_that_is_close_enough(curve: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    assert settings(capsys, "--fidelity", "0.95")[0]["plan"] == "FFSFSFSSFS"
    assert settings(capsys, "--fidelity", "0.97")[0]["tau1"] == 0.1
    chosen, said = settings(capsys, "--fidelity", "0.999")
    assert (chosen["tau1"], chosen["tau2"], chosen["plan"]) == (0, 0, "")
    assert "reaches a mean SSIM of 0.999 (the closest has 0.9900); making the uncached picture" in said


def test_the_picture_says_how_it_was_made_and_can_be_made_again(
    curve: Profile, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for speedup, share in (("2", 0.5), ("3", 0.3)):
        assert run(["a cat", *SMALL, "--seed", "7", "--speedup", speedup, "-o", f"{speedup}.png"]) == 0
        promise, told = capsys.readouterr().err.splitlines()[-2:]
        assert f"% of the blocks of 10 steps, est. {1 / share:.2f}x" in told
        assert (f"{share:.0%} of the blocks of 10 steps, est." in promise) and (f", {share:.0%} of" in told)
        found = read_metadata(here / f"{speedup}.png")
        assert found.preset is None
        assert run(["replay", f"{speedup}.png", "-o", f"{speedup}-again.png", "-q"]) == 0
        assert read_metadata(here / f"{speedup}-again.png").settings == found.settings
    assert read_metadata(here / "2.png").settings.cache.plan == "FFSFSFSSFS"
    assert read_metadata(here / "3.png").settings.solver == "unipc"


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The jobs of a batch's dry run, and its other output."""
    assert run(["batch", "p.yaml", *arguments, "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    return [json.loads(line)["settings"] for line in captured.out.splitlines()], captured.err


@pytest.mark.slow
def test_a_batch_chooses_for_each_situation_once_and_goes_on_with_what_it_chose(
    curve: Profile, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(curve.key, steps=12)
    choice = replace(curve.choices[0], steps=4)
    write_profile(Profile(user_folder() / file_name(other), other, (choice,), {}))
    (here / "p.yaml").write_text(
        "defaults: {steps: 10, cfg: 1, seed: 1}\nprompts:\n  - a cat\n  - a dog\n  - {prompt: a cow, steps: 12}\n"
    )
    jobs, said = listed(capsys, "--speedup", "2")
    assert [job["plan"] for job in jobs] == ["FFSFSFSSFS", "FFSFSFSSFS", ""]
    assert (jobs[2]["steps"], jobs[2]["solver"]) == (4, "unipc")
    chosen = [line for line in said.splitlines() if "when measured" in line]
    assert len(chosen) == 2 and "at 12 steps, 128x128: Using 4 plain steps of UniPC," in chosen[1]
    assert run(["batch", "p.yaml", "--speedup", "2", "-q"]) == 0
    pictures = sorted(here.glob("*.png"))
    assert {read_metadata(path).settings.cache.plan for path in pictures} == {"FFSFSFSSFS", ""}
    assert {read_metadata(path).preset for path in pictures} == {None}
    capsys.readouterr()
    assert run(["batch", "p.yaml", "--speedup", "2"]) == 0
    assert "3 of 3 pictures already exist" in capsys.readouterr().err


def test_what_a_prompt_says_itself_contradicts_a_wish_and_a_missing_profile_is_told_once(
    curve: Profile, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "p.yaml").write_text(
        "prompts:\n  - prompt: a cat\n    steps: 10\n    tau1: 0.1\n  - prompt: a dog\n    preset: fast\n"
    )
    assert run(["batch", "p.yaml", "--cfg", "1", "--fidelity", "0.9"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "h2gen: p.yaml:4: --fidelity chooses solver and cache itself; leave out tau1, or --fidelity.",
        "h2gen: p.yaml:6: --fidelity chooses solver and cache itself; leave out preset, or --fidelity.",
    ]
    (here / "p.yaml").write_text("defaults: {steps: 20}\nprompts: [a cat, a dog, a cow]\n")
    assert run(["batch", "p.yaml", "--cfg", "1", "--speedup", "2"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "There is no profile for 'tiny' at 20 steps" in told and "--steps 20" in told
    assert list(here.glob("*.png")) == []


def test_what_is_set_for_good_is_no_contradiction(
    curve: Profile, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "odd.toml").write_text("plan = 'FFF'\n")
    monkeypatch.setenv("H2GEN_PRESET", str(here / "odd.toml"))
    monkeypatch.setenv("H2GEN_SOLVER", "heun")
    chosen, _ = settings(capsys, "--speedup", "2")
    assert (chosen["plan"], chosen["solver"]) == ("FFSFSFSSFS", "own") and "preset" not in chosen


@pytest.mark.slow
def test_a_shell_takes_a_wish_and_says_once_what_it_chose(curve: Profile, here: Path) -> None:
    lines = ["a cat", "a dog", ":set tau1 0.1", ":set fidelity 0.97", "a cow"]
    done = h2gen("shell", *SMALL, "--seed", "7", "--speedup", "2", input="\n".join(lines))
    cat, dog, cow = (read_metadata(here / line).settings for line in done.stdout.splitlines())
    assert cat.cache.plan == dog.cache.plan == "FFSFSFSSFS"
    assert (cow.cache.plan, cow.cache.tau1) == ("", 0.1)
    assert done.stderr.count("Using 5 of 10 steps") == 1 and done.stderr.count("Using thresholds 0.1") == 1
    assert "leave out tau1, or --speedup" in done.stderr
    assert done.returncode == 1  # for the line that contradicted it


def test_the_nearest_is_used_with_a_warning(curve: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--steps", "20", "--cfg", "1", "--speedup", "2", "--nearest", "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)["settings"]["plan"]["value"]
    assert len(plan) == 20 and plan.startswith("F")
    assert "using the nearest, made for 10 steps" in captured.err
    assert "These figures were measured with 'tiny' at 10 steps, 128x128;" in captured.err


BAD: list[tuple[list[str], str]] = [
    (["a cat", *SMALL, "--speedup", "9"], "the maximum is 3.20x"),
    (["a cat", *SMALL, "--speedup", "1"], "speedup is 1; give a number above 1"),
    (["a cat", *SMALL, "--fidelity", "2"], "fidelity is 2"),
    (["a cat", *SMALL, "--fidelity", "0.9", "--speedup", "2"], "--speedup and --fidelity contradict"),
    (["a cat", *SMALL, "--speedup", "2", "--tau1", "0.1"], "leave out --tau1, or --speedup"),
    (["a cat", *SMALL, "--speedup", "2", "--preset", "fast"], "leave out --preset"),
    (["a cat", *SMALL, "--fidelity", "0.9", "--solver", "unipc"], "leave out --solver, or --fidelity"),
    (["a cat", *SMALL, "--fidelity", "0.9", "--no-cache"], "leave out --no-cache"),
    (["a cat", *SMALL, "--nearest"], "--nearest chooses a profile"),
    (["a cat", "--steps", "33", "--cfg", "1", "--speedup", "2"], "There is no profile for 'tiny' at 33 steps, 128x128"),
    (["a cat", "--steps", "33", "--speedup", "2"], "h2gen tune --model tiny --steps 33 (it takes about as long as"),
    (["a cat", "--steps", "4", "--cfg", "1", "--speedup", "2"], "a cache cannot help below 8"),
    (["a cat", *SMALL, "--speedup", "1.1", "--policy", "tolerance"], "has no tolerances. Measure them: h2gen tune"),
    (["a cat", *SMALL, "--speedup", "1.5", "--policy", "thresholds"], "allows with thresholds: the maximum is 1.20x"),
    (["a cat", *SMALL, "--policy", "plan"], "--policy limits what --speedup or --fidelity may choose"),
    (["a cat", *SMALL, "--speedup", "2", "--policy", "x"], "choose auto, plan, tolerance, thresholds or steps"),
    (["tune", "--steps", "4"], "a cache cannot help below 8"),
    (["tune", "--search", "0"], "search is 0"),
    (["tune", "--check", "99"], "24 to check on; give more with --prompts"),
    (["tune", "--budgets", "x"], "budgets is 'x'"),
    (["tune", "--budgets", "0.5,1.5"], "above 0 and below 1"),
    (["tune", "--prompts", "p.txt"], "The files hold 2 prompts"),
    (["tune", "--prompts", "gone.txt"], "no such file"),
    (["tune", "--profile", "p.txt"], "ends in .toml"),
    (["tune", "--tries", "-1"], "tries is -1"),
    (["tune", "--threshold-tries", "-1"], "threshold-tries is -1"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_ends_in_one_clear_line_and_nothing_is_made(
    curve: Profile, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (here / "p.txt").write_text("a cat\na dog\n")
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err and len(err.splitlines()) == 1 and err.startswith("h2gen: ")
    assert [path.name for path in here.iterdir()] == ["p.txt"]


@pytest.mark.slow
def test_tune_makes_a_profile_that_is_then_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    made = next(profile for profile in list_profiles() if profile.key.steps == 10)
    assert found["profile"] == str(made.path) and made.path.parent == user_folder()
    assert made.path.with_suffix(".svg").read_text().startswith("<svg")
    assert made.key.content_hash == content_hash(resolve("tiny"))
    assert made.pictures == 2
    assert [choice["label"] for choice in found["choices"]] == [choice.label for choice in made.choices]
    for sort in SORTS:  # each is on the curve of its sort: more blocks, closer
        shares = sorted((choice.figures.share, choice.figures.ssim_mean) for choice in made.of(sort))
        assert shares or sort == "plan"
        assert shares == sorted(shares, key=lambda pair: pair[1])
    assert all(choice.figures.share <= 0.6 and choice.figures.ssim_mean > 0.3 for choice in made.choices)
    assert "Recording 1 picture with the model's own solver" in captured.err
    last = captured.err.splitlines()[-1]
    assert last.startswith(("Now use it: h2gen 'a cat' --speedup ", "No measured setting saves time"))
    closest = max(choice.figures.ssim_mean for choice in made.choices)
    assert run(["a cat", *SMALL, "--fidelity", str(closest - 0.001), "-q"]) == 0
    assert not list((here.parent / "home").rglob("*.jsonl"))


@pytest.mark.slow
def test_a_quiet_search_prints_only_what_it_found_and_where_it_is(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*LEAST, "--quiet"]) == 0
    out, err = capsys.readouterr()
    head, *_, path = out.splitlines()
    assert head.split()[:2] == ["faster", "blocks"] and err == ""
    assert Path(path) == next(profile for profile in list_profiles() if profile.key.steps == 8).path


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(here: Path, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started(*LEAST) as process:
        notes = wait_for(lambda: [p for p in own_home.rglob("*.jsonl") if p.read_bytes().count(b"\n") > 6])
        process.kill()
    before = notes[0].read_bytes().count(b'"key"')
    assert before > 3
    assert run(LEAST) == 0
    captured = capsys.readouterr()
    assert "Continuing an interrupted search" in captured.err
    assert "faster" in captured.out and "SSIM" in captured.out
    assert not notes[0].exists()


@pytest.mark.slow
def test_in_a_terminal_it_says_how_far_it_is() -> None:
    with in_a_terminal(*LEAST) as (process, screen):
        text = read_until(screen)
        assert process.wait(600) == 0
    for words in ("Recording", "Searching", "pictures", "best so far", "Measuring"):
        assert words in text, words


@pytest.mark.slow
def test_what_a_prompt_file_sets_holds_for_the_search(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.yaml").write_text("defaults: {steps: 12, size: 64x64, cfg: 1}\nprompts: [a cat, a dog]\n")
    command = ["tune", "--prompts", "p.yaml", "--search", "1", "--check", "1", "--dry-run", "--json"]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)["settings"]
    assert found["steps"] == {"value": 12, "source": "prompt file"}
    assert (found["size"]["value"], found["cfg"]["value"]) == ("64x64", 1)
    (here / "p.yaml").write_text("prompts:\n  - a cat\n  - {prompt: a dog, steps: 12}\n")
    assert run(command) == 2
    assert "p.yaml:3 has its own settings" in capsys.readouterr().err


def test_a_profile_is_written_over_nothing_but_a_profile(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.toml").write_text("steps = 3\n")
    assert run([*QUICK, "--profile", "mine.toml"]) == 2
    assert "mine.toml' cannot be used" in capsys.readouterr().err
    assert (here / "mine.toml").read_text() == "steps = 3\n"


def test_a_dry_run_makes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "steps" in out and "tau1" not in out
    assert "At most 136 pictures, which take about as long as 59 uncached ones" in out
    assert "The profile goes to" in out and "tiny-10-128x128-*.toml" in out
    assert run([*QUICK, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["pictures"] == 136
    assert not user_folder().exists()
