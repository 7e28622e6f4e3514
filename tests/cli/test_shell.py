"""``h2gen shell``: the model stays loaded, and a mistake costs only its line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from h2gen.cli.completion import in_shell
from h2gen.errors import SettingError
from h2gen.generation.shell import Action, ShellState
from h2gen.models.catalogue import resolve
from h2gen.output.metadata import read_metadata
from tests.cli.programs import h2gen, in_a_terminal, press_until, read_until

QUICK = ["--steps", "2", "--cfg", "1"]


@pytest.mark.slow
def test_lines_from_a_pipe_are_prompts_and_commands(here: Path) -> None:
    lines = [
        "a cat",
        ":seed 3",
        "a dog",
        ":set steps 3",
        ":set size 64x64",
        ":again",
        ":unset steps",
        ":set tau1 0.3",
        "::colon",
        ":set preset fast",
        ":set no-cache on",
        "an owl",
        ":set preset fast",
        ":again",
        ":seed random",
        ":again",
        "",
        ":quit",
        "never",
    ]
    done = h2gen("shell", "-o", "out", *QUICK, input="\n".join(lines))
    assert done.returncode == 0, done.stderr
    made = [read_metadata(here / line) for line in done.stdout.splitlines()]
    assert [found.settings.prompt for found in made] == [
        "a cat",
        "a dog",
        "a dog",
        ":colon",
        "an owl",
        "an owl",
        "an owl",
    ]
    assert [found.settings.steps for found in made] == [2, 2, 3, 2, 2, 2, 2]
    assert [found.settings.seed for found in made[1:6]] == [3] * 5
    assert made[0].settings.seed != 3 and made[6].settings.seed != 3
    assert [found.settings.width for found in made] == [128, 128, 64, 64, 64, 64, 64]
    assert made[3].settings.cache.tau1 == 0.3
    assert [found.settings.cache.enabled for found in made[4:]] == [False, True, True]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (":", "There is no command :"),
        (":sho", "did you mean 'show'"),
        (":unset", "There is no setting ''"),
        (":set num_inference_steps 3", "There is no setting 'num_inference_steps'; use steps."),
        (":set out a.png", "out is 'a.png'; the shell needs a folder for its pictures."),
        ("set steps 3", "begin with a colon: :set steps 3"),
        ("a dog --seed 3", "type :set seed 3 first, then the prompt alone."),
        ("a dog --num-inference-steps=3", "type :set steps 3 first"),
        (":set steps", "steps needs a value"),
        (":set stps 3", "did you mean 'steps'"),
        (":set steps x", "steps is 'x'; give a whole number"),
        (":set steps 0", "steps is 0"),
        (":set tau1 -1", "tau1 is -1"),
        (":set tau1 x", "give a number"),
        (":set no-cache maybe", "give true or false"),
        (":set model dev", "start a new one"),
        (":set device cuda", "start a new one"),
        (":set preview-file a.png", "preview-file cannot be changed in a running shell; start a new one."),
        (":set preset slow", "no preset 'slow'"),
        (":set size big", "size is 'big'"),
        (":unset stps", "did you mean 'steps'"),
        (":seed", "seed needs a value"),
        (":seed x", "seed is"),
        (":again", "no picture yet"),
        (":set format gif", "format is 'gif', and this is a picture; choose png, jpg or webp"),
    ],
)
def test_a_mistake_is_one_line_and_the_shell_goes_on(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a model, which these tests do not need."""
    from h2gen.cli.views.request import show_request
    from h2gen.errors import H2GenError

    shell = ShellState({})
    with pytest.raises(H2GenError) as error:
        shell.read(line)
    assert words in str(error.value)
    step = shell.read(":show")
    assert step.action is Action.SHOW and step.request is not None
    show_request(step.request, ["random"])
    assert "28" in capsys.readouterr().out


def test_a_plan_takes_the_place_of_what_it_ignores() -> None:
    shell = ShellState({})
    shell.read(":set warmup-steps 2")
    assert shell.read(f":set plan {'F' * 28}").action.value == "changed"
    assert shell.value("warmup_steps") is None
    with pytest.raises(SettingError, match="warmup_steps has no effect with plan; give one"):
        shell.read(":set warmup-steps 2")


def test_what_cannot_be_unset_stays_and_a_goal_is_unset_with_what_belongs_to_it() -> None:
    shell = ShellState({"plan": "F" * 4})
    shell.read(f":set plan {'F' * 28}")
    with pytest.raises(SettingError, match="plan is for 4 steps"):
        shell.read(":unset plan")
    assert shell.value("plan") == "F" * 28
    shell = ShellState({}, resolve("tiny"))
    for line in (":set speedup 1.5", ":set policy steps", ":set nearest on", ":unset speedup"):
        shell.read(line)
    assert shell.read("a cat").action is Action.RENDER


def test_a_tolerance_is_added_to_a_plan_that_only_skips_and_takes_the_place_of_any_other() -> None:
    shell, skips = ShellState({}), "F" + 26 * "S" + "F"
    shell.read(f":set plan {skips.lower()}")
    step = shell.read(":set tolerance 0.02")
    assert step.request is not None
    cache = step.request.settings.cache
    assert (cache.plan, cache.tolerance) == (skips, 0.02)
    for line, decides in (
        (f":set plan {skips}", (skips, 0.0)),  # the latest wins
        (f":set plan {skips.replace('SF', 'RF')}", (skips.replace("SF", "RF"), 0.0)),
        (":set tolerance 0.03", ("", 0.03)),
    ):
        step = shell.read(line)
        assert step.request is not None
        assert (step.request.settings.cache.plan, step.request.settings.cache.tolerance) == decides


@pytest.mark.parametrize(
    ("line", "action"),
    [("quit", "quit"), ("exit", "quit"), (" Quit ", "quit"), ("help", "help"), ("?", "help"), ("show", "show")],
)
def test_a_command_is_understood_without_its_colon(line: str, action: str) -> None:
    assert ShellState({}).read(line).action.value == action


def test_a_changed_setting_is_told_with_what_follows_from_it(here: Path) -> None:
    lines = [":set steps 3", ":set size 100x100", ":seed random", ":set", ":show", ":set no-cache on", ":unset steps"]
    lines += [":set lora tiny/blueprint:0.5", ":set lora none"]
    done = h2gen("shell", "--model", "tiny", "-o", "out", input="\n".join(lines))
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert "steps is now 3" in told
    assert told[told.index("size is now 96x96") + 1].startswith("100x100 is not a multiple")
    assert "seed is now a new one each time" in told
    assert "no-cache is now on" in told
    assert "steps is now 28" in told
    assert told[-2:] == ["lora is now tiny/blueprint:0.5", "lora is now none"]
    listed, shown = done.stdout.split("setting")[1:]
    assert "warmup-steps" in listed and "warmup-steps" not in shown
    assert "prompt" not in listed + shown


def test_what_a_profile_chose_is_told_when_a_speed_is_set() -> None:
    shell = ShellState({}, resolve("tiny"))
    step = shell.read(":set speedup 2")
    assert step.request is not None
    assert any(notice.startswith("Using ") for notice in step.request.notices)
    assert shell.value(step.changed) == 2.0


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (":s", [":set", ":show", ":seed"]),
        (":set st", ["steps"]),
        (":unset neg", ["negative"]),
        (":set preset f", ["fast"]),
        (":set solver ", ["own", "unipc", "heun", "dpm++", "lcm"]),
        (":set no-cache o", ["on", "off"]),
        (":set steps 1", []),
        (":set nonsense ", []),
        ("a c", []),
        ("", []),
    ],
)
def test_tab_completes_commands_settings_and_values(line: str, offered: list[str]) -> None:
    assert in_shell(line) == offered


def test_what_fails_in_a_pipe_is_told_by_the_exit_status(here: Path) -> None:
    done = h2gen("shell", "-o", "out", *QUICK, input=":nonsense\na cat\n")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert "h2gen: There is no command :nonsense" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "a.png"], "the shell needs a folder"),
        (["--seed", "x"], "--seed is 'x'"),
        (["--seed", "1-3"], "one seed at a time"),
        (["--steps", "0"], "--steps is 0"),
    ],
)
def test_what_it_cannot_start_with_is_one_line(here: Path, arguments: list[str], words: str) -> None:
    done = h2gen("shell", *arguments, input="a cat\n")
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1
    assert os.listdir(here) == []


@pytest.mark.slow
def test_ctrl_c_stops_a_picture_and_not_the_shell(here: Path, own_home: Path) -> None:
    with in_a_terminal("shell", "--cfg", "1", "-o", "out", whole=True) as (process, screen):
        seen = read_until(screen, "h2gen>")
        assert ":help" in seen
        os.write(screen, b":set steps 2000\na [red]cat[/]\n")
        read_until(screen, "full")
        os.write(screen, b"\x03")
        assert "Stopped; nothing was saved." in read_until(screen, "was saved.*h2gen>")
        os.write(screen, b"half a line")
        read_until(screen, "half a line")
        press_until(screen, b"\x03", "h2gen>")  # what was typed before is gone with it; readline may miss a signal
        os.write(screen, b":set steps 2\n:again\n")
        assert "a-red-cat" in read_until(screen, r"\.png.*h2gen>")
        os.write(screen, b"\x04")
        read_until(screen)
        assert process.wait(600) == 0
    assert len(list((here / "out").glob("*.png"))) == 1
    (history,) = (path for path in own_home.rglob("history"))
    assert ":again" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
