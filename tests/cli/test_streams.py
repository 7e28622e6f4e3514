"""Standard streams that cannot show or take what is written: the pictures are made, and no traceback is printed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from h2gen.batches.stop import Level, Stop
from h2gen.cli.console import say_stopping
from h2gen.generation.interrupt import stop_on_ctrl_c
from tests.cli.programs import needs_posix, piped

QUICK = ("--steps", "4", "--size", "64x64", "--no-cache")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell; ``H2GEN`` in it is the program."""
    needs_posix()
    line = line.replace("H2GEN", f"'{sys.executable}' -m h2gen")
    return subprocess.run(line, shell=True, capture_output=True, text=True, env={**os.environ, **environ})


def test_what_an_encoding_lacks_is_escaped_and_nothing_is_lost(here: Path) -> None:
    done = piped("gōld 猫", *QUICK, "--seed", "1,2", "-o", "bō", env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0, done.stderr
    assert len(list((here / "bō").iterdir())) == 2
    assert [line[:8] for line in done.stdout.splitlines()] == ["b\\u014d/"] * 2


@pytest.mark.parametrize("command", ["presets show fast", "'gōld 猫' --dry-run", "--help"])
@pytest.mark.parametrize(
    ("stdout", "reason"), [(">/dev/full", "No space left on device"), (">&-", "it is closed"), ("| true", "")]
)
def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(command: str, stdout: str, reason: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    reader = f"{{ H2GEN {command}; echo $? >&2; }} {stdout}" if stdout.startswith("|") else f"H2GEN {command} {stdout}"
    done = shell(reader, PYTHONIOENCODING="cp1252")
    lines = [line for line in done.stderr.splitlines() if "bundled" not in line]
    if reason:
        assert (done.returncode, lines) == (1, [f"h2gen: Not everything could be written to stdout: {reason}."])
    else:
        assert lines in (["1"], ["0"])  # 0 if everything was written before the reader ended


@pytest.mark.slow
@pytest.mark.parametrize("redirected", [">/dev/full 2>&1", "2>&-", "2>&1 | true"])
def test_a_batch_makes_all_its_pictures_whatever_happens_to_its_output(here: Path, redirected: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (here / "p.txt").write_text("a cat\na dog\na bee\n")
    done = shell(f"H2GEN batch p.txt {' '.join(QUICK)} -o d {redirected}")
    assert len(list((here / "d").glob("*.png"))) == 3
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == (0 if redirected[0] == "2" else 1)


@pytest.mark.parametrize("stdin", ["<&-", "0>there"])
def test_a_stdin_that_cannot_be_read_is_an_empty_one(here: Path, stdin: str) -> None:
    (here / "there").touch()
    assert shell(f"H2GEN - {stdin}").stderr.splitlines()[-1].startswith("h2gen: The prompt is empty")
    assert "stdin: there is no prompt in it" in shell(f"H2GEN batch - {stdin}").stderr


def test_a_file_never_gets_the_number_of_a_closed_stream() -> None:
    code = (
        "from h2gen.cli.streams import make_safe; make_safe(); print(open('/dev/null').fileno(), file=open('n', 'w'))"
    )
    assert shell(f"cd $(mktemp -d); '{sys.executable}' -c \"{code}\" <&- >&- 2>&-; cat n").stdout.strip() > "2"


def test_characters_of_tables_have_a_form_in_ascii_that_is_as_wide() -> None:
    text = "0.36 ≥ 0.1|0.36 ≤ 0.1|a…|█━⠋ · ō \\ud800|\\udcff"
    code = f"from h2gen.cli.streams import make_safe; make_safe(); print('{text}', end='')"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ascii_only)
    assert done.stdout == b"0.36 >=0.1|0.36 <=0.1|a.|##* - \\u014d \\ud800|\xff"


@pytest.mark.parametrize("size", ["0", "-1", "\u00b2", "99999999999", "wide"])
def test_a_size_of_the_terminal_that_is_none_is_ignored(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from h2gen.cli.console import make_console

    monkeypatch.setenv("COLUMNS", size)
    monkeypatch.setenv("LINES", size)
    assert make_console().size == (80, 25)


def test_piped_output_is_never_wrapped(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    prompt = "a cat " * 100
    assert f"{prompt.strip()}  " in piped(prompt, "--dry-run").stdout


@pytest.mark.posix
@pytest.mark.parametrize("of", ["a picture", "a batch"])
def test_ctrl_c_amid_a_line_is_told_after_it(of: str) -> None:
    written = bytearray()

    class Slow(io.RawIOBase):
        """Is interrupted while it writes its first line."""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if not written:
                written.extend(b"> ")
                os.kill(os.getpid(), signal.SIGINT)
            written.extend(data)
            return len(data)

    interrupted: list[bool] = []
    session: Any = SimpleNamespace(interrupt=lambda: interrupted.append(True), forget_interrupt=lambda: None)
    with io.TextIOWrapper(io.BufferedWriter(Slow()), "utf-8") as stream:
        console = Console(file=stream, width=80)

        def tell(_level: Level = Level.STEP) -> None:
            time.sleep(0.2)  # a busy machine
            say_stopping(console)

        with stop_on_ctrl_c(session, tell) if of == "a picture" else Stop(tell):
            console.print("a line")
        console.print("what follows")
    assert interrupted == [True] * (of == "a picture")
    lines = b"> a line\nStopping after this step; press Ctrl-C again to stop at once.\nwhat follows\n"
    assert bytes(written) == lines
