"""One picture on several devices: two processes on the CPU make what one makes; one that dies ends the run."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image

import h2gen
from h2gen.errors import RunError
from h2gen.generation.companions import Companions, FirstSession, Place
from h2gen.generation.result import Result
from h2gen.output.metadata import read_metadata
from h2gen.settings.values import OFF
from tests.cli.programs import h2gen as h2gen_in_process

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*all_gather_tensor:FutureWarning")]
THRESHOLDS = {"tau1": 0.4, "tau2": 0.5}
SMALL: dict[str, Any] = {"steps": 6, "size": "96x96", "seed": 7, "progress": False}


@pytest.fixture(scope="module")
def alone() -> h2gen.Session:
    return h2gen.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def pair() -> Iterator[FirstSession]:
    """Two processes, loaded after a meeting that failed. The last test of this module ends them."""
    dist.distributed_c10d._world.group_count = 3  # what torch counts of such meetings
    session = h2gen.load("tiny", device="cpu", devices=2)
    assert isinstance(session, FirstSession)
    yield session
    session._companions.end()


def decisions(result: Result) -> list[Any]:
    return [(s.step, s.context, s.picture, s.structure.outcome, s.detail.outcome) for s in result.trace.steps]


def assert_same(one: Result, two: Result) -> None:
    first, second = (np.asarray(each.image).astype(int) for each in (one, two))
    assert abs(first - second).max() <= 1
    assert decisions(one) == decisions(two)


def test_a_size_that_cannot_be_shared_out_is_said_in_one_line() -> None:
    done = in_this_process("a cat", "--devices", "2", "--device", "cpu", "--steps", "4", "--size", "144x144")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "h2gen: --size is 144x144, whose tokens, one per 16x16 pixels, cannot be shared out evenly among 2 processes "
        "on the CPU; give 144x160, for example."
    ]


def test_the_program_makes_it_and_replays_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--steps", "4", "--size", "96x96", "--seed", "7", "--device", "cpu", "--tau1", "0.4", "--tau2", "0.5")
    one = in_this_process("a cat", *options, "--out", "one.png", "--trace", "one.jsonl")
    two = program("a cat", *options, "--out", "two.png", "--trace", "two.jsonl", "--devices", "2", cwd=tmp_path)
    again = in_this_process("replay", "two.png", "--out", "again.png", "--devices", "2")
    assert [each.returncode for each in (one, two, again)] == [0, 0, 0]
    assert two.stdout == "two.png\n" and two.stderr.count("\n") == 1
    pictures = {name: np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("one", "two", "again")}
    assert abs(pictures["one"] - pictures["two"]).max() <= 1
    assert (pictures["two"] == pictures["again"]).all()
    metadata = [read_metadata(tmp_path / f"{name}.png") for name in ("one", "two")]
    assert metadata[0].settings == metadata[1].settings
    assert [each.devices for each in metadata] == [1, 2]
    assert ["devices", "2"] in [line.split() for line in in_this_process("info", "two.png").stdout.splitlines()]
    lines = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) > 8
    assert json.loads(lines[1][0])["settings"]["devices"] == 2 and "devices" not in lines[0][0]


@pytest.mark.parametrize(
    "cache",
    [{"tau1": 0.4, "tau2": 0.5}, {"tolerance": 0.03}, {"plan": "FFSRFF"}],
    ids=["thresholds", "tolerance", "plan"],
)
def test_two_processes_make_the_picture_of_one(alone: h2gen.Session, pair: FirstSession, cache: dict[str, Any]) -> None:
    one, two = (session.generate("a cat", **SMALL, **cache) for session in (alone, pair))
    assert_same(one, two)
    assert one.summary is not None and one.summary.share < 1


def test_they_make_it_without_the_cache(alone: h2gen.Session, pair: FirstSession) -> None:
    one, two = (session.generate("a cat", **SMALL, no_cache=True).image for session in (alone, pair))
    assert abs(np.asarray(one).astype(int) - np.asarray(two)).max() <= 1


def test_they_make_a_batch(alone: h2gen.Session, pair: FirstSession) -> None:
    settings = [
        alone.settings(prompt, tau1=0.4, tau2=0.5, steps=4, size="96x96", seed=7) for prompt in ("a cat", "a dog")
    ]
    for one, two in zip(alone.run_together(settings), pair.run_together(settings), strict=True):
        assert_same(one, two)


def test_an_interrupted_picture_stops_all_and_the_next_is_made(alone: h2gen.Session, pair: FirstSession) -> None:
    with pytest.raises(KeyboardInterrupt):
        pair.generate("a cat", **SMALL, on_step=lambda step: pair.interrupt() if step.step == 2 else None)
    assert_same(alone.generate("a cat", **SMALL, cache=OFF), pair.generate("a cat", **SMALL, cache=OFF))


def test_in_a_script_of_ones_own_under_torchrun(tmp_path: Path, alone: h2gen.Session) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch, torch.distributed as dist, h2gen\n"
        "from h2gen.models.parallel import split_tokens\n"
        "dist.init_process_group('gloo')\n"
        "session = h2gen.load('tiny', device='cpu')\n"
        "split_tokens(session.pipe.transformer, 2)\n"
        "made = session.generate('a cat', steps=6, size='96x96', seed=7, tau1=0.4, tau2=0.5, progress=False)\n"
        "made.image.save(f'{sys.argv[1]}/{dist.get_rank()}.png')\n"
        "with h2gen.h2_cache(session.pipe, tau1=0.4, tau2=0.5) as trace:\n"
        "    session.pipe('a cat', width=96, height=96, num_inference_steps=4)\n"
        "found = [None, None]\n"
        "dist.all_gather_object(found, [step.structure.change for step in trace.steps])\n"
        "assert found[0] == found[1] and len(found[0]) == 4, found\n",
        encoding="utf-8",
    )
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path))
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    expected = np.asarray(alone.generate("a cat", **SMALL, tau1=0.4, tau2=0.5).image).astype(int)
    pictures = [np.asarray(Image.open(tmp_path / f"{rank}.png")) for rank in range(2)]
    assert (pictures[0] == pictures[1]).all() and abs(expected - pictures[0]).max() <= 1


def test_a_process_that_ends_before_they_meet_ends_the_waiting() -> None:
    sentinel, alive = os.pipe()
    process = SimpleNamespace(sentinel=sentinel, exitcode=None, join=lambda _seconds: None)
    companions = object.__new__(Companions)
    companions._places, companions._processes = [Place(1, ("cpu", "cpu"), 1, 1)], [process]
    companions._connections, companions._why = [], None
    stopped = threading.Event()

    def exit_code_is_known(_seconds: float) -> None:
        process.exitcode = -signal.SIGKILL

    def join() -> None:
        process.join = exit_code_is_known
        os.close(alive)
        stopped.wait(60)

    with pytest.raises(RunError, match="Process 2 of 2, on cpu, was killed by signal 9"):
        companions.meet(join)
    stopped.set()
    os.close(sentinel)


def test_what_keeps_the_first_process_from_meeting_the_others_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("h2gen.generation.companions._PATIENCE", 0)  # the other one lives
    sentinel, alive = os.pipe()
    companions = object.__new__(Companions)
    companions._places = [Place(1, ("cpu", "cpu"), 1, 1)]
    companions._processes = [SimpleNamespace(sentinel=sentinel, exitcode=None, join=lambda _seconds: None)]
    companions._connections, companions._why = [], None

    def join() -> None:
        raise RuntimeError("no address for this host\nhere")

    with pytest.raises(RunError, match=r"^Process 1 of 2, on cpu, failed: no address for this host$"):
        companions.meet(join)
    os.close(alive)
    os.close(sentinel)


def test_a_process_that_dies_ends_the_run_with_one_line(pair: FirstSession) -> None:
    (process,) = pair._companions._processes

    def kill(step: h2gen.cache.StepRecord) -> None:
        if step.step == 2:
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(RunError, match="Process 2 of 2, on cpu, was killed by signal 9") as caught:
        pair.generate("a cat", **SMALL, on_step=kill)
    assert "\n" not in str(caught.value)
    assert not process.is_alive() and not dist.is_initialized()
    with pytest.raises(RunError, match="load the model again"):
        pair.generate("a cat", **SMALL)


UNFINISHED = """
import torch, torch.distributed as dist
import h2gen

session = h2gen.load("tiny", device="cpu", devices=2)
left = torch.ops._c10d_functional.all_reduce(torch.ones(1), "sum", dist.group.WORLD.group_name)
session._companions.end()
"""


def test_torch_says_nothing_of_an_exchange_that_a_lost_process_has_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    done = subprocess.run([sys.executable, "-c", UNFINISHED], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


def in_this_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program, before this process has companions of its own."""
    done = h2gen_in_process(*arguments)
    gc.collect()
    assert not dist.is_initialized()
    return done


def program(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "h2gen", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
