"""A batch in a real Ray cluster of two machines, of which one is lost, has another model, or runs out of memory."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from h2gen.batches import ray_cluster
from h2gen.batches.api import prepare
from h2gen.batches.batch import Batch, BatchOptions
from h2gen.batches.jobs import Job, Jobs
from h2gen.batches.messages import Broken, Failed, Model, Ready, Task
from h2gen.batches.observer import Tally
from h2gen.batches.prompts import Entry, Reading
from h2gen.batches.ray_cluster import RayOptions, Slots, device_and_dtype, find_slots
from h2gen.batches.ray_nodes import decide
from h2gen.batches.stop import Stop
from h2gen.errors import DeviceError, ModelError, RunError, SettingError
from h2gen.generation.session import Session, open_session
from h2gen.models.catalogue import resolve
from h2gen.models.load_options import LoadOptions
from h2gen.output.metadata import read_metadata
from h2gen.settings.values import Settings
from tests import small
from tests.batches.test_batch import BIG, QUICK, ROOM, UNENDING, Watch, pixels, run
from tests.cli.programs import piped, started, wait_for

NEEDS_RAY = pytest.mark.skipif(sys.platform == "win32", reason="Ray's test cluster needs POSIX")
STORE = 80 * 2**20
UNHURRIED = {
    "RAY_health_check_timeout_ms": "300000",  # a busy machine answers late, and is not lost
    "RAY_worker_register_timeout_seconds": "600",
    "MALLOC_ARENA_MAX": "1",  # else each of Ray's threads may take much of a limited address space
    "RAY_memory_monitor_refresh_ms": "0",  # what else runs here may fill the memory, and no worker is killed for it
}
"""What the cluster's processes read when they are started."""


class TwoMachines:
    """A head without slots, on which the tests run, and two machines with one slot each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.machines: list[Any] = []
        self.complete()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def complete(self, **more: Any) -> None:
        """Add machines until there are two."""
        while len(self.machines) < 2:
            # The GPU is one that torch does not know of.
            self.add(num_gpus=1, object_store_memory=STORE, **more)

    def add(self, **more: Any) -> None:
        """Add a machine of one core; a busy one may take longer than Ray itself waits."""
        self.machines.append(self.cluster.add_node(wait=False, num_cpus=1, **more))
        self.cluster.wait_for_nodes(timeout=300)

    def lose(self) -> None:
        """Cut off a machine."""
        self.cluster.remove_node(self.machines.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def two() -> Iterator[TwoMachines]:
    pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    for name, value in {**ray_cluster._ENVIRONMENT, **UNHURRIED}.items():
        patch.setenv(name, value)
    machines = TwoMachines()
    try:
        yield machines
    finally:
        machines.cluster.shutdown()
        patch.undo()


def actors() -> list[int]:
    """Those of the machines that this process has started."""
    started = psutil.Process().children(recursive=True)
    return [each.pid for each in started if "ray::ModelHolder" in " ".join(_command(each))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def read(prompts: Any) -> Reading:
    """Prompts that are settings."""
    own = [dict(each) for each in prompts]
    return Reading([Entry(each.pop("prompt", "a cat"), f"p.txt:{n}", each, {}) for n, each in enumerate(own, 1)])


class BeginningTogether(Batch):
    """No worker begins before all have loaded the model."""

    @contextmanager
    def _pool(self, *given: Any) -> Iterator[Any]:
        import ray

        with super()._pool(*given) as pool:
            loading = [worker.awaited for worker in pool.workers]
            ray.wait(loading, num_returns=len(loading), timeout=600)
            yield pool


def batch_in(
    folder: Path,
    where: TwoMachines,
    prompts: int | Sequence[dict[str, Any]],
    slots: int | None = None,
    kind: type[Batch] = Batch,
    **given: Any,
) -> Batch:
    """A run in the cluster. Prompts are settings, or a number of them that differ in their text and seed."""
    texts = range(1, prompts + 1) if isinstance(prompts, int) else ()
    reading = read([{"prompt": f"prompt {n}", "seed": n} for n in texts] or prompts)
    options = RayOptions(where.address, slots)
    return kind(Jobs(reading, {**QUICK, **given}, {}), folder, "png", BatchOptions(), ray=options)


@cache
def session() -> Session:
    return open_session(resolve("tiny"), LoadOptions(device="cpu"))


def assert_as_made_here(path: Path, **files: Any) -> None:
    """A picture is that of its settings, made without Ray."""
    settings = replace(read_metadata(path).settings, **files)
    assert np.array_equal(pixels(path), np.asarray(session().run(settings).image))


class Kept(Watch):
    """Knows where each picture is."""

    def __init__(self, *more: Any) -> None:
        super().__init__(*more)
        self.paths: dict[int, Path] = {}

    def saved(self, job: Job, path: Path, *more: Any) -> None:
        super().saved(job, path, *more)
        self.paths[job.index] = path


@NEEDS_RAY
@pytest.mark.slow
def test_a_machine_lost_amid_forty_pictures_costs_none_and_none_is_made_twice(tmp_path: Path, two: TwoMachines) -> None:
    two.complete()
    began: set[int] = set()

    class Losing(Kept):
        def began(self, worker: int, jobs: Sequence[Job]) -> None:
            super().began(worker, jobs)
            began.add(worker)

        def saved(self, job: Job, path: Path, *more: Any) -> None:
            super().saved(job, path, *more)
            if len(two.machines) == 2 and len(began) == 2 and job.index > 6:
                two.lose()

    watch = Losing()
    tally = run(batch_in(tmp_path / "ray", two, 40, size="64x64", steps=2, kind=BeginningTogether), watch)
    assert len(two.machines) == 1, "both machines worked, and one was lost"
    assert (tally.made, tally.failed, tally.left) == (40, 0, 0), watch.log
    assert sorted(entry[1] for entry in watch.log if entry[0] == "made") == [*range(1, 41)]
    assert sorted(path.name[:4] for path in (tmp_path / "ray").glob("*.png")) == [f"{n:04}" for n in range(1, 41)]
    assert_as_made_here(watch.paths[1])
    wait_for(lambda: not actors())


@NEEDS_RAY
@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, two: TwoMachines) -> None:
    two.complete()
    file = tmp_path / "p.jsonl"
    lines: list[dict[str, Any]] = [{"prompt": f"prompt {n}"} for n in range(4)]
    file.write_text("\n".join(map(json.dumps, [*lines[:3], lines[3] | UNENDING])))
    command = ["batch", str(file), "-o", str(tmp_path / "out"), "--ray", two.address, "--ray-slots", "1"]
    command += ["--steps", "20", "--size", "64x64", "--device", "cpu"]
    with started(*command) as process:
        wait_for(lambda: list((tmp_path / "out").glob("*.png")))
        process.kill()
        process.wait(600)
    wait_for(lambda: not actors())  # Ray ends the actors of a program that has died
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert 1 <= len(before) < 4
    file.write_text("\n".join(map(json.dumps, lines)))
    done = piped(*command, timeout=600)
    assert done.returncode == 0, done.stderr
    connecting, *said = done.stderr.splitlines()
    assert connecting == f"Connecting to the Ray cluster at {two.address} ..."
    assert not any("Traceback" in line or "ray" in line.lower() for line in said)
    assert f"{4 - len(before)} made" in done.stderr
    assert sorted(path.name[:4] for path in (tmp_path / "out").glob("*.png")) == [f"{n:04}" for n in range(1, 5)]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@NEEDS_RAY
@pytest.mark.slow
def test_a_worker_that_runs_out_of_memory_is_started_again_and_decodes_in_tiles(
    tmp_path: Path, two: TwoMachines
) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX")
    two.complete()

    class Limiting(Watch):
        def began(self, worker: int, jobs: Sequence[Job]) -> None:
            super().began(worker, jobs)
            for pid in actors():
                size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
                resource.prlimit(pid, resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))

    watch = Limiting()
    tally = run(batch_in(tmp_path, two, [{"size": BIG[0]}], 1, steps=1), watch)
    assert (tally.made, tally.failed) == (1, 0), watch.log
    assert [entry for entry in watch.log if entry[0] in ("failed", "relieved")] == [
        ("relieved", 1, "Out of memory on cpu; trying again with tiled decoding.")
    ]
    assert read_metadata(next(tmp_path.glob("*.png"))).tiled


@NEEDS_RAY
@pytest.mark.slow
def test_files_that_prompts_name_travel_and_the_pictures_are_those_made_here(tmp_path: Path, two: TwoMachines) -> None:
    two.complete()
    picture = tmp_path / "start.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(picture)
    shutil.copy(picture, tmp_path / "kept.png")
    own = [{"prompt": f"prompt {n}", "seed": n, "image": str(picture)} for n in range(1, 3)]
    watch = Kept(lambda _worker, _job: picture.unlink(missing_ok=True))
    # The machines are asked which device they have.
    batch = batch_in(tmp_path / "ray", two, own, 1, size="64x64", strength=0.6, device="auto")
    tally = run(batch, watch)
    assert not picture.exists()
    assert (tally.made, tally.failed) == (2, 0), watch.log
    assert watch.log[0] == ("ready", "cpu", "float32")
    for path in watch.paths.values():
        (file,) = read_metadata(path).settings.image
        assert_as_made_here(path, image=(replace(file, path=tmp_path / "kept.png"),))


@NEEDS_RAY
@pytest.mark.slow
def test_if_every_machine_has_another_model_nothing_is_made(tmp_path: Path, two: TwoMachines) -> None:
    two.complete()
    small.flux_pipeline().save_pretrained(tmp_path / "model")
    batch = batch_in(tmp_path / "out", two, 1, 1, model=str(tmp_path / "model"), size="64x64", max_sequence_length=16)
    config = tmp_path / "model" / "vae" / "config.json"

    with batch.opened():
        config.write_text(config.read_text() + " ")  # since the run has hashed it
        different = r"there \([0-9a-f]{12}\) is not the one here \([0-9a-f]{12}\)"
        with pytest.raises(ModelError, match=different), Stop() as stop:
            batch.run(Tally(1), Watch(), stop)
    assert not list((tmp_path / "out").glob("*.png"))


@NEEDS_RAY
@pytest.mark.slow
def test_a_second_ctrl_c_stops_amid_a_picture_and_leaves_the_cluster_running(tmp_path: Path, two: TwoMachines) -> None:
    two.complete()
    told: list[int] = []

    def twice(_worker: int, job: Job) -> None:
        if not told:
            told.append(job.index)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    tally = run(batch_in(tmp_path, two, 3, 1, **UNENDING), Watch(twice))
    assert told and (tally.made, tally.failed, tally.left) == (0, 0, 3)
    wait_for(lambda: not actors())
    assert all(machine.all_processes["raylet"][0].process.poll() is None for machine in two.machines)


@NEEDS_RAY
@pytest.mark.slow
def test_a_machine_with_another_model_of_that_name_is_left_out(tmp_path: Path, two: TwoMachines) -> None:
    """The cluster's second machine has another cache of the hub. It loses its machines: the last test to use it."""
    for name, seed in (("here", 0), ("there", 1)):
        snapshot = tmp_path / name / "hub" / "models--owner--name" / "snapshots" / "1"
        small.flux_pipeline(seed=seed).save_pretrained(snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("1")
    while two.machines:
        two.lose()
    two.add(env_vars={"HF_HOME": str(tmp_path / "here")})
    two.complete(env_vars={"HF_HOME": str(tmp_path / "there")})
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    command = ["batch", "p.txt", "-o", "out", "-m", "owner/name", "--ray", two.address, "--device", "cpu"]
    command += ["-n", "1000", "--steps", "8", "--size", "64x64", "--max-sequence-length", "16"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "here")}
    with (
        open(tmp_path / "err", "w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "h2gen", *command], cwd=tmp_path, env=environment, stdout=errors, stderr=errors
        ) as process,
    ):
        # However late that machine answers, there are pictures left; the other one goes on with them.
        wait_for(lambda: "Left out" in (tmp_path / "err").read_text() or process.poll() is not None)
        made = len(list((tmp_path / "out").glob("*.png")))
        wait_for(lambda: len(list((tmp_path / "out").glob("*.png"))) > made or process.poll() is not None)
        process.send_signal(signal.SIGINT)
    said = (tmp_path / "err").read_text()
    assert process.returncode == 130, said
    (line,) = [each for each in said.splitlines() if "Left out" in each]
    assert f"{socket.gethostname()} (" in line and "the model 'owner/name' there (" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ray": "auto", "gpus": "0"}, "--ray and --gpus contradict each other"),
        ({"ray": "auto", "device": "cuda:1"}, "--ray chooses the GPUs itself"),
        ({"ray_slots": 2}, "--ray-slots has no effect without --ray"),
        ({"ray": "ray://head:10001"}, "give auto, or HOST:PORT"),
        ({"ray": "auto", "ray_slots": 0}, "ray_slots is 0"),
    ],
)
def test_options_of_ray_are_checked_before_it_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        prepare(["a cat"], **options)


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SettingError, match=r"^--ray needs the package ray; run pip install 'h2gen\[ray\]'\.$"):
        prepare(["a cat"], ray="auto")


@pytest.mark.slow
@pytest.mark.posix
def test_a_folder_that_is_too_long_for_ray_is_told_with_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (long := tmp_path / ("x" * 90)).mkdir()
    (tmp_path / "p.txt").write_text("a cat")
    command = [sys.executable, "-m", "h2gen", "batch", "p.txt", "--ray", "auto", "--out", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "TMPDIR": str(long)}, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("h2gen: Ray could not be started on this machine: the path of the folder for temporary")
    assert last.endswith(f"({long}); set TMPDIR to a shorter one.")


def test_a_cluster_that_cannot_be_reached_is_one_line() -> None:
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DeviceError, match=rf"^--ray {address}: nothing answers there \(.*refused\)"):
            prepare(["a cat"], ray=address)


def test_it_is_said_to_which_cluster_before_it_is_asked() -> None:
    pytest.importorskip("ray")
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        device_and_dtype(RayOptions(address), LoadOptions(device="cpu"), said.append)
    with pytest.raises(DeviceError, match="nothing answers"):
        device_and_dtype(RayOptions(address), LoadOptions(device="cpu"), said.append)
    assert said == [f"Connecting to the Ray cluster at {address} ..."] * 2


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (b"", "what answers there is not the head of a Ray cluster; check the address"),
        (
            b"InvalidAuthToken: Authentication token is missing or incorrect.",
            "the cluster asks for a token; copy ~/.ray/",
        ),
    ],
)
def test_a_server_that_refuses_is_asked_itself(stderr: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that runs on this machine does not answer in its place."""
    asked: list[list[str]] = []

    def unhealthy(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return SimpleNamespace(returncode=1, stderr=stderr)

    monkeypatch.setattr(ray_cluster.subprocess, "run", unhealthy)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(DeviceError, match=f"^--ray {address}: {message}"):
            ray_cluster._check_reachable(address)
    assert asked[0][asked[0].index("--address") + 1] == address


def test_a_cluster_of_another_version_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from ray._private.utils import check_version_info

    def init(**_: Any) -> None:
        try:
            check_version_info({"ray_version": "2.9.0", "python_version": "3.10.4"}, "this process", True)
        except RuntimeError as error:
            raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from error

    monkeypatch.setattr(ray_cluster, "_check_reachable", lambda _address: None)
    monkeypatch.setattr(ray, "init", init)
    said = (
        r"10\.0\.0\.1:6379: the cluster runs Ray 2\.9\.0 and Python 3\.10\.4, and this machine Ray \S+ and Python \S+;"
    )
    with pytest.raises(DeviceError, match=said), ray_cluster.joined(RayOptions("10.0.0.1:6379")):
        pass


def test_a_machine_outside_of_the_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    healthy = SimpleNamespace(returncode=0, stderr=b"")
    monkeypatch.setattr(ray_cluster.subprocess, "run", lambda *_, **__: healthy)
    monkeypatch.setattr("ray._private.services.find_node_ids", set)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        said = f"this machine is not in the cluster; run `ray start --address {address}` on it first"
        with pytest.raises(DeviceError, match=said):
            ray_cluster._check_reachable(address)


@pytest.mark.parametrize("verbose", [False, True])
def test_what_ray_says_of_itself_is_kept_out_of_stdout(verbose: bool, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    from ray._private import worker

    with ray_cluster._printing_to_stderr(verbose):
        worker.print_to_stdstream({"lines": ["a worker died"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    said = capfd.readouterr()
    assert not said.out and ("a worker died" in said.err) is verbose


def in_a_new_process(code: str, home: Path) -> str:
    """What code prints in a process whose environment has nothing of Ray."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@NEEDS_RAY
@pytest.mark.slow
def test_ray_for_this_machine_alone_is_not_seen_by_others(tmp_path: Path) -> None:
    code = (
        "import psutil\n"
        "from h2gen.batches.ray_cluster import RayOptions, joined\n"
        "with joined(RayOptions('auto')):\n"
        "    me = psutil.Process()\n"
        "    for each in (me, *me.children(recursive=True)):\n"
        "        for found in each.net_connections(kind='inet'):\n"
        "            if found.status == psutil.CONN_LISTEN:\n"
        "                print(found.laddr.ip.removeprefix('::ffff:'))\n"
    )
    assert {*in_a_new_process(code, tmp_path).split()} == {"127.0.0.1"}
    assert not (tmp_path / ".ray").exists(), "later clusters would ask for its token"


@NEEDS_RAY
@pytest.mark.slow
def test_ray_leaves_nothing_in_the_environment_and_starts_again(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from h2gen.batches.ray_cluster import RayOptions, joined\n"
        "os.environ['RAY_USAGE_STATS_ENABLED'] = '1'\n"
        "before = dict(os.environ)\n"
        "for _ in range(2):\n"
        "    with joined(RayOptions('auto')):\n"
        "        import ray\n"
        "        os.environ['MINE'] = 'set meanwhile'\n"
        "        assert len(os.environ['RAY_AUTH_TOKEN']) == 64\n"
        "        assert ray.get(ray.put(7)) == 7 and ray.available_resources()['CPU'] > 0\n"
        "    assert dict(os.environ) == {**before, 'MINE': 'set meanwhile'}, os.environ.keys() ^ before.keys()\n"
    )
    in_a_new_process(code, tmp_path)


def test_what_was_set_is_put_back_if_ray_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_REMOVED", "1")
    before = dict(os.environ)

    def init(**_: Any) -> None:
        assert os.environ["RAY_AUTH_TOKEN"]
        del os.environ["RAY_REMOVED"]
        raise RuntimeError("no room")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(DeviceError, match="no room"), ray_cluster.joined(RayOptions("auto")):
        pass
    assert dict(os.environ) == before


def test_an_unexpected_error_leaves_a_machine_out_each_time_that_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from h2gen.batches import ray_actor

    def spoilt(_checkpoint: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(ray_actor, "_on_this_machine", spoilt)
    monkeypatch.setattr(ray_actor, "_machine", lambda: "gpu-2")
    holder = ray_actor.ModelHolder(Model(None, LoadOptions(), ""), "")  # type: ignore[arg-type]
    for _ in range(2):
        broken = holder.load()
        assert isinstance(broken, Broken) and str(broken.error) == "gpu-2: ZeroDivisionError: division by zero"
    holder.clear()


@pytest.mark.parametrize("name", ["tiny", "tiny-video"])
def test_a_bundled_model_is_found_where_h2gen_is_installed(name: str) -> None:
    pytest.importorskip("ray")
    from h2gen.batches.ray_actor import _on_this_machine

    own = resolve(name)
    assert _on_this_machine(replace(own, location=Path("/elsewhere") / name)) == own


def test_what_a_call_that_broke_off_has_left_is_not_taken_for_pictures_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    from h2gen.batches import ray_actor

    pipe = SimpleNamespace(components={})
    session = SimpleNamespace(device="cpu", dtype=torch.float32, offload="none", pipe=pipe)
    monkeypatch.setattr("h2gen.models.memory.refused_by", lambda _pipe: {"blocks"})
    monkeypatch.setattr(ray_actor, "_on_this_machine", lambda checkpoint: checkpoint)
    monkeypatch.setattr(ray_actor, "_check_same", lambda *_: None)
    monkeypatch.setattr(ray_actor, "load_session", lambda _model: (session, ()))
    failed = lambda _session, _model, tasks, _outbox: [Failed(tasks[0].job, True)] * 2  # noqa: E731
    monkeypatch.setattr(ray_actor, "make_together", failed)
    one, other = (
        Task(Settings("a cat", n, 64, 64, 2), "png", None, str(n), "", None, False, True, False) for n in (1, 2)
    )
    holder = ray_actor.ModelHolder(Model(None, LoadOptions(), ""), "")  # type: ignore[arg-type]
    ready = holder.load()
    assert isinstance(ready, Ready) and ready.refused == {"blocks"}
    messages = holder.make([one], {})
    assert next(messages) == Failed("1", True)
    messages.close()  # type: ignore[attr-defined]
    assert [*holder.make([other], {})] == [Failed("2", True)] * 2
    holder.clear()


@pytest.mark.parametrize(
    ("machines", "device", "wanted", "slots"),
    [
        ([{"CPU": 2}], "cpu", None, Slots(1, 2, 0)),
        ([{}, {"CPU": 8}, {"CPU": 4}], "cpu", None, Slots(2, 8 // 2, 0)),
        ([{"CPU": 8}, {"CPU": 4}], "cpu", 5, Slots(5, 2, 0)),
        ([{"CPU": 8}, {"CPU": 4}], "cpu", 12, Slots(12, 1, 0)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 4, "GPU": 1}], "cuda", None, Slots(5, 0, 1)),
        ([{"CPU": 8, "GPU": 4}], "cuda", 2, Slots(2, 0, 1)),
    ],
)
def test_each_slot_gets_as_many_cores_as_there_are_for_all(
    machines: list[dict[str, float]], device: str, wanted: int | None, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_machines", lambda: machines)
    assert find_slots(RayOptions("auto", wanted), device) == slots


def test_more_slots_than_there_are_and_none_at_all_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_machines", lambda: [{"CPU": 2}, {"CPU": 1}])
    with pytest.raises(SettingError, match=r"ray_slots is 4, but the Ray cluster has 3 CPU cores.*give at most 3\."):
        find_slots(RayOptions("auto", 4), "cpu")
    with pytest.raises(DeviceError, match="no GPU; give --device cpu"):
        find_slots(RayOptions("auto"), "cuda")


@pytest.mark.parametrize(
    ("device", "dtype", "found", "decided"),
    [
        ("auto", "auto", [], ("cpu", "float32")),
        ("auto", "auto", [("cpu", "float32"), ("cuda", "bfloat16")], ("cuda", "bfloat16")),
        ("auto", "auto", [("cuda", "float16"), ("cuda", "float16")], ("cuda", "float16")),
        ("auto", "auto", [("cuda", "float16"), ("cuda", "bfloat16")], ("cuda", "bfloat16")),
        ("cuda", "auto", [], ("cuda", "bfloat16")),
        ("cuda", "fp32", [("cuda", "float16")], ("cuda", "float32")),
    ],
)
def test_machines_say_what_they_compute_on(
    device: str, dtype: str, found: list[tuple[str, str]], decided: tuple[str, str]
) -> None:
    where, precision = decide(device, dtype, found)
    assert (str(where), str(precision)) == (decided[0], f"torch.{decided[1]}")


def test_a_worker_that_dies_while_it_loads_is_left_out_and_one_that_loaded_starts_anew() -> None:
    pytest.importorskip("ray")
    from ray.exceptions import RayError

    from h2gen.batches.ray_pool import RayPool, RayWorker

    class Scripted(RayWorker):
        """An actor that follows a script: None is its death."""

        def __init__(self, *script: Any) -> None:
            self.ready, self.awaited, self.deaths, self._script = None, object(), 0, [*script]

        def load(self) -> None:
            self.ready = None

        def end(self) -> None:
            pass

        def _received(self) -> Any:
            if (message := self._script.pop(0)) is None:
                raise RayError("killed")
            return message

    loaded = Ready("cpu", "float32", "none")
    notices: list[str] = []
    pool = RayPool(Model(resolve("tiny"), LoadOptions(), ""), RayOptions("auto"), 2, notices.append)
    dying, steady = Scripted(None, loaded, None, None, None), Scripted(loaded, None, None, None)
    pool.workers = [dying, steady]

    def read(worker: RayWorker) -> str:
        return " ".join(type(message).__name__ for _, message in pool._read(worker))

    assert [read(dying) for _ in range(4)] == ["Died", "Ready", "Died", "Died"]
    assert read(steady) == "Ready" and not notices
    assert read(dying) == "Broken"
    why = "the process that loads the model was lost; there may not be enough memory for it."
    assert notices == [f"Left out a worker: {why}"]
    assert [read(steady) for _ in range(2)] == ["Died", "Died"]
    with pytest.raises(RunError, match="^T" + re.escape(why[1:])):
        read(steady)

    talking = RayPool(Model(resolve("tiny"), LoadOptions(), ""), RayOptions("auto", verbose=True), 2, notices.append)
    ((_, death),) = talking._read(Scripted(None))
    assert str(death) == "was lost" and notices[1:] == ["Ray: killed"]
