"""Measure a batch of the bundled model: does memory stay flat, and how much time passes outside the pipeline?

    python tools/measure_batch.py                      # 300 pictures, 60 prompts with 5 seeds each
    python tools/measure_batch.py --pictures 40 --steps 28 --cfg 3

Resident memory is that of the program and its worker together, as ``h2gen batch`` runs them. Time outside the pipeline
is the time from the first finished picture to the last, minus the pipeline's calls in between.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cfg", type=float, default=1.0)
    options = parser.parse_args()
    prompts = max(1, options.pictures // SEEDS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("".join(f"a cat number {number}\n" for number in range(prompts)), encoding="utf-8")
        command = [sys.executable, "-m", "h2gen", "batch", str(file), "-o", folder, "--json", "--seed", f"1-{SEEDS}"]
        started = time.monotonic()
        with subprocess.Popen(
            [*command, "--steps", str(options.steps), "--cfg", str(options.cfg)],
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
