"""Measure a batch of the bundled model: does memory stay flat, and how much time passes outside the pipeline?

    python tools/measure_batch.py                      # 300 pictures, 60 prompts with 5 seeds each
    python tools/measure_batch.py --pictures 40 --steps 28 --cfg 3
    python tools/measure_batch.py --ray --pictures 80 --steps 28   # two workers of Ray against one

Resident memory is that of the program and its worker together, as ``h2gen batch`` runs them. Time outside the pipeline
is the time from the first finished picture to the last, minus the pipeline's calls in between.

With ``--ray`` a cluster of two machines with one core each is started, with one thread per worker. Throughput is taken
from the pictures during which all workers were busy, so loading is left out. The machine must be idle, with two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SEEDS = 5
EARLY = 20
"""Pictures after which everything kept in memory should have its final size."""


def resident(process: psutil.Process) -> float:
    """MiB of a process and its children."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20


def throughput(command: list[str], workers: int) -> float:
    """Pictures per second of a batch while so many workers are all busy."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        times = [time.monotonic() for _ in process.stdout]
        errors = process.stderr.read()
    if process.returncode or len(times) < 8 * workers:
        sys.exit(f"the batch ended with status {process.returncode} after {len(times)} pictures: {errors}")
    busy = times[len(times) // 4 : len(times) - workers]
    return (len(busy) - 1) / (busy[-1] - busy[0])


def measure_ray(batch: list[str], pictures: int) -> None:
    """Print the throughput of one and two workers in a cluster of two machines, and their ratio."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        rates = []
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                how = ["--ray", cluster.address, "--ray-slots", str(workers), "--device", "cpu"]
                rates.append(throughput([*batch, "-o", folder, *how], workers))
            print(f"{workers} worker{'s' if workers > 1 else ''}: {rates[-1]:.3f} pictures/s of {pictures}", flush=True)
    finally:
        cluster.shutdown()
    print(f"two workers make {rates[1] / rates[0]:.3f} times as many as one; {rates[1] / rates[0] / 2:.2f} of double")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    prompts = max(1, options.pictures // SEEDS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("".join(f"a cat number {number}\n" for number in range(prompts)), encoding="utf-8")
        command = [sys.executable, "-m", "h2gen", "batch", str(file), "--json", "--seed", f"1-{SEEDS}"]
        command += ["--steps", str(options.steps), "--cfg", str(options.cfg)]
        if options.ray:
            measure_ray(command, prompts * SEEDS)
            return
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
