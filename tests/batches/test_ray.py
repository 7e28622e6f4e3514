"""A batch in a real Ray cluster of two machines, of which one is lost, has another model, or runs out of memory."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from h2gen.batches.ray_cluster import RayOptions, Slots, find_slots
from h2gen.batches.stop import Stop
from h2gen.errors import DeviceError, ModelError, SettingError
from h2gen.models.catalogue import resolve
from h2gen.models.load_options import LoadOptions
from h2gen.output.metadata import read_metadata
from h2gen.settings.values import Settings
from tests import small
from tests.batches.test_batch import BIG, QUICK, ROOM, SLOW, Watch, pixels, run
from tests.cli.programs import piped, started, wait_for

NEEDS_RAY = pytest.mark.skipif(sys.platform == "win32", reason="Ray's test cluster needs POSIX")
STORE = 80 * 2**20


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
            self.machines.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE, **more))

    def lose(self) -> None:
        """Cut off a machine."""
        self.cluster.remove_node(self.machines.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def two() -> Iterator[TwoMachines]:
    pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    for name, value in ray_cluster._ENVIRONMENT.items():
        patch.setenv(name, value)
    machines = TwoMachines()
    try:
        yield machines
    finally:
        machines.cluster.shutdown()
        patch.undo()


def actors() -> list[int]:
    return [each.pid for each in psutil.process_iter() if "ray::ModelHolder" in " ".join(_command(each))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def read(prompts: Any) -> Reading:
    """Prompts that are settings."""
    own = [dict(each) for each in prompts]
    return Reading([Entry(each.pop("prompt", "a cat"), f"p.txt:{n}", each, {}) for n, each in enumerate(own, 1)])


def batch_in(
    folder: Path, where: TwoMachines, prompts: int | Sequence[dict[str, Any]], slots: int | None = None, **given: Any
) -> Batch:
    """A run in the cluster. Prompts are settings, or a number of them that differ in their text and seed."""
    texts = range(1, prompts + 1) if isinstance(prompts, int) else ()
    reading = read([{"prompt": f"prompt {n}", "seed": n} for n in texts] or prompts)
    options = RayOptions(where.address, slots)
    return Batch(Jobs(reading, {**QUICK, **given}, {}), folder, "png", BatchOptions(), ray=options)


def same_pictures(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("*.png"))
    return bool(names) and all(np.array_equal(pixels(one / name), pixels(other / name)) for name in names)


@NEEDS_RAY
@pytest.mark.slow
def test_a_machine_lost_amid_forty_pictures_costs_none_and_none_is_made_twice(tmp_path: Path, two: TwoMachines) -> None:
    two.complete()
    began: set[int] = set()

    class Losing(Watch):
        def began(self, worker: int, jobs: Sequence[Job]) -> None:
            super().began(worker, jobs)
            began.add(worker)

        def saved(self, job: Job, *more: Any) -> None:
            super().saved(job, *more)
            if len(two.machines) == 2 and len(began) == 2 and job.index > 6:
                two.lose()

    watch = Losing()
    tally = run(batch_in(tmp_path / "ray", two, 40, size="64x64", steps=2), watch)
    assert len(two.machines) == 1, "both machines worked, and one was lost"
    assert (tally.made, tally.failed, tally.left) == (40, 0, 0), watch.log
    assert sorted(entry[1] for entry in watch.log if entry[0] == "made") == [*range(1, 41)]
    assert sorted(path.name[:4] for path in (tmp_path / "ray").glob("*.png")) == [f"{n:04}" for n in range(1, 41)]
    local = Batch(
        Jobs(Reading([Entry("prompt 1", "p.txt:1", {"seed": 1}, {})]), {**QUICK, "size": "64x64", "steps": 2}, {}),
        tmp_path / "local",
        "png",
        BatchOptions(),
    )
    run(local, Watch())
    assert same_pictures(tmp_path / "local", tmp_path / "ray")
    assert not actors()


@NEEDS_RAY
@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, two: TwoMachines) -> None:
    two.complete()
    file = tmp_path / "p.txt"
    file.write_text("".join(f"prompt {n}\n" for n in range(8)))
    command = ["batch", str(file), "-o", str(tmp_path / "out"), "--ray", two.address, "--ray-slots", "1"]
    command += ["--steps", "12", "--size", "64x64", "--device", "cpu"]
    with started(*command) as process:
        wait_for(lambda: len(list((tmp_path / "out").glob("*.png"))) >= 2, 60)
        process.kill()
        process.wait(10)
    wait_for(lambda: not actors(), 30)  # Ray ends the actors of a program that has died
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert 2 <= len(before) < 8
    done = piped(*command, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "ray" not in done.stderr.lower()
    assert f"{8 - len(before)} made" in done.stderr
    assert sorted(path.name[:4] for path in (tmp_path / "out").glob("*.png")) == [f"{n:04}" for n in range(1, 9)]
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
    own = [{"prompt": f"prompt {n}", "seed": n, "image": str(picture)} for n in range(1, 4)]
    given = {"size": "64x64", "strength": 0.6}
    reading = read(own)
    run(Batch(Jobs(reading, {**QUICK, **given}, {}), tmp_path / "local", "png", BatchOptions()), Watch())
    watch = Watch(lambda _worker, _job: picture.unlink(missing_ok=True))
    batch = batch_in(tmp_path / "ray", two, own, 1, **given)
    tally = run(batch, watch)
    assert not picture.exists()
    assert (tally.made, tally.failed) == (3, 0), watch.log
    assert same_pictures(tmp_path / "local", tmp_path / "ray")


@NEEDS_RAY
@pytest.mark.slow
def test_a_machine_with_another_model_of_that_name_is_left_out(tmp_path: Path, two: TwoMachines) -> None:
    """The cluster's second machine has another cache of the hub."""
    for name, seed in (("here", 0), ("there", 1)):
        snapshot = tmp_path / name / "hub" / "models--owner--name" / "snapshots" / "1"
        small.flux_pipeline(seed=seed).save_pretrained(snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("1")
    while two.machines:
        two.lose()
    try:
        two.machines.append(two.cluster.add_node(num_cpus=1, env_vars={"HF_HOME": str(tmp_path / "here")}))
        two.complete(env_vars={"HF_HOME": str(tmp_path / "there")})
        (tmp_path / "p.txt").write_text("a cat\na dog\n")
        command = ["batch", "p.txt", "-o", "out", "-m", "owner/name", "--ray", two.address, "--device", "cpu"]
        # One machine must not have made them all before the other one has loaded.
        command += ["-n", "30", "--steps", "8", "--size", "64x64", "--max-sequence-length", "16"]
        environment = {**os.environ, "HF_HOME": str(tmp_path / "here")}
        done = piped(*command, cwd=tmp_path, env=environment, timeout=60)
    finally:
        while two.machines:
            two.lose()
    assert done.returncode == 0, done.stderr
    (line,) = [each for each in done.stderr.splitlines() if "Left out" in each]
    assert f"{socket.gethostname()} (" in line and "the model 'owner/name' there (" in done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 60


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

    tally = run(batch_in(tmp_path, two, 3, 1, **{**SLOW, "steps": 300}), Watch(twice))
    assert told and (tally.made, tally.failed, tally.left) == (0, 0, 3)
    assert not actors()
    assert all(machine.all_processes["raylet"][0].process.poll() is None for machine in two.machines)


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


def test_a_cluster_that_cannot_be_reached_is_one_line() -> None:
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DeviceError, match=rf"^--ray {address}: nothing answers there \(.*refused\)"):
            prepare(["a cat"], ray=address)


def test_a_server_that_is_not_rays_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that runs on this machine does not answer in its place."""
    asked: list[list[str]] = []

    def unhealthy(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(ray_cluster.subprocess, "run", unhealthy)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(DeviceError, match=f"^--ray {address}: what answers there is not the head of a Ray cluster"):
            ray_cluster._check_reachable(address)
    assert asked[0][asked[0].index("--address") + 1] == address


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
    folder = holder._folder
    assert folder.stat().st_mode & 0o777 == 0o700
    holder.clear()
    assert not folder.exists()


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
