"""Measure a batch of the bundled model: does memory stay flat, and how much time passes outside the pipeline?

    python tools/measure_batch.py                      # 300 pictures, 60 prompts with 5 seeds each
    python tools/measure_batch.py --pictures 40 --steps 28 --cfg 3
    python tools/measure_batch.py --ray --pictures 80 --steps 28   # two workers of Ray against one

Resident memory is that of the program and its worker together, as ``h2gen batch`` runs them. Time outside the pipeline
is the time from the first finished picture to the last, minus the pipeline's calls in between.

With ``--ray`` one worker and two are measured, each with one thread, first as this program's own processes, then in a
cluster of one machine with as many cores. The first shows what the machine itself allows: two cores that share memory
and power are seldom twice as fast as one. The clock runs while all workers are warm (``WARM`` pictures) and busy; half
of the pictures are made in each of four runs. The machine must be idle, with two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import psutil

import h2gen
from h2gen.batches.jobs import Job
from h2gen.batches.messages import PictureMade
from h2gen.batches.observer import BatchObserver, Tally

SEEDS = 5
WARM = 3
"""Pictures that each worker makes before the clock begins."""
EARLY = 20
"""Pictures after which everything kept in memory should have its final size."""


def resident(process: psutil.Process) -> float:
    """MiB of a process and its children."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20


class Clock(BatchObserver):
    """When each worker's pictures were finished while all workers were warm and busy, and what took CPU meanwhile.

    Args:
        workers: their number.
    """

    def __init__(self, workers: int) -> None:
        self._finished: dict[int, list[float]] = {worker: [] for worker in range(workers)}
        self._makes: dict[int, int] = {}
        self._jobs = 0
        self._warm: tuple[float, dict[str, float]] | None = None
        self._end: tuple[float, dict[str, float]] | None = None

    def remark(self, text: str) -> None:
        """What the model makes of a prompt does not matter."""

    def counted(self, tally: Tally, duplicates: int, workers: int) -> None:
        self._jobs = tally.left

    def began(self, worker: int, jobs: Sequence[Job]) -> None:
        self._makes[jobs[0].index] = worker
        if len(self._makes) == self._jobs:  # the next worker that finishes is idle
            self._end = time.monotonic(), cpu_seconds()

    def saved(self, job: Job, path: Path, made: PictureMade, tally: Tally) -> None:
        self._finished[self._makes[job.index]].append(time.monotonic())
        if self._warm is None and min(map(len, self._finished.values())) >= WARM:
            self._warm = time.monotonic(), cpu_seconds()

    def result(self) -> Throughput:
        """Each worker's pace over its own pictures, added up, so that it does not matter when they began."""
        if self._warm is None or self._end is None:
            sys.exit("too few pictures; give more --pictures")
        (begin, before), (end, after) = self._warm, self._end
        busy = [[each for each in times if begin <= each <= end] for times in self._finished.values()]
        if min(map(len, busy)) < WARM:
            sys.exit("too few pictures; give more --pictures")
        pace = sum((len(times) - 1) / (times[-1] - times[0]) for times in busy)
        pictures = sum(map(len, busy))
        return Throughput(pace, {kind: (after[kind] - before[kind]) / pictures for kind in after})


class Throughput(NamedTuple):
    """Pictures per second, and CPU seconds per picture by kind of process."""

    pace: float
    cpu: dict[str, float]


def cpu_seconds() -> dict[str, float]:
    """What the workers, this program and Ray's own processes have taken so far."""
    taken = dict.fromkeys(("workers", "h2gen", "Ray"), 0.0)
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            command, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        works = "ray::ModelHolder" in command or "spawn_main" in command or "forkserver" in command
        kind = "h2gen" if process.pid == os.getpid() else "workers" if works else "Ray"
        taken[kind] += times.user + times.system
    return taken


def measure_workers(
    name: str, prompts: Sequence[str], steps: int, where: Callable[[int], AbstractContextManager[dict[str, Any]]]
) -> float:
    """Print the throughput of one and of two workers. Returns how many times as much two make.

    One, two, two, one: the machine's speed may change slowly meanwhile.
    """
    found: dict[int, list[Throughput]] = {1: [], 2: []}
    for workers in (1, 2, 2, 1):
        clock = Clock(workers)
        with tempfile.TemporaryDirectory() as folder, where(workers) as how:
            h2gen.batch(prompts, seed=f"1-{SEEDS}", steps=steps, out=folder, observer=clock, **how)
        found[workers].append(clock.result())
    paces = {workers: mean(each.pace for each in several) for workers, several in found.items()}
    for workers, several in found.items():
        cpu = {kind: mean(each.cpu[kind] for each in several) for kind in several[0].cpu}
        spent = ", ".join(f"{kind} {seconds:.3f}" for kind, seconds in cpu.items() if seconds)
        every = " and ".join(f"{each.pace:.3f}" for each in several)
        print(f"{name}, {workers} worker{'s' if workers > 1 else ''}: {every} pictures/s; ", end="")
        print(f"CPU seconds per picture: {spent}", flush=True)
    ratio = paces[2] / paces[1]
    print(f"{name}: two workers make {ratio:.3f} times as many as one, {ratio / 2:.2f} of double", flush=True)
    return ratio


def measure_ray(prompts: Sequence[str], steps: int) -> None:
    """Print the throughput of one and two workers without Ray, and in a cluster."""
    from ray.cluster_utils import Cluster

    def beside(workers: int) -> AbstractContextManager[dict[str, Any]]:
        return nullcontext({"gpus": ",".join(["cpu"] * workers)})

    plain = measure_workers("own processes", prompts, steps, beside)

    def in_cluster(workers: int) -> Iterator[dict[str, Any]]:
        head = {"num_cpus": workers, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield {"ray": cluster.address, "ray_slots": workers, "device": "cpu"}
        finally:
            cluster.shutdown()

    inside = measure_workers("Ray", prompts, steps, contextmanager(in_cluster))
    print(f"Ray loses {1 - inside / plain:.1%} of what two processes of this machine gain without it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    prompts = max(1, options.pictures // SEEDS)
    if options.ray:
        os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in the workers
        measure_ray([f"a cat number {number}" for number in range(max(1, prompts // 2))], options.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("".join(f"a cat number {number}\n" for number in range(prompts)), encoding="utf-8")
        command = [sys.executable, "-m", "h2gen", "batch", str(file), "--json", "--seed", f"1-{SEEDS}"]
        command += ["--steps", str(options.steps), "--cfg", str(options.cfg)]
        started = time.monotonic()
        with subprocess.Popen(
            [*command, "-o", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            seconds: list[float] = []
            memory: dict[int, float] = {}
            for line in process.stdout:
                seconds.append(json.loads(line)["seconds"])
                if len(seconds) == 1:
                    first = time.monotonic()
                memory[len(seconds)] = resident(psutil.Process(process.pid))
            last = time.monotonic()
    if process.returncode or len(seconds) < 2:
        sys.exit(f"the batch ended with status {process.returncode} after {len(seconds)} pictures")
    wall, inside = last - first, sum(seconds[1:])
    print(f"{len(seconds)} pictures of {prompts} prompts, {options.steps} steps, cfg {options.cfg:g}")
    print(f"first picture after {first - started:.1f} s, loading included; the others in {wall:.1f} s")
    for count in sorted({min(EARLY, len(seconds)), len(seconds) // 2, len(seconds) - 1}):
        print(f"resident memory after {count:4d} pictures: {memory[count]:7.1f} MiB")
    print(f"outside the pipeline: {1 - inside / wall:.2%} of the time")


if __name__ == "__main__":
    main()
