"""The gate: lint, format, types, the main job on the bundled model, and tests with coverage.

Stops at the first step that fails. --fast leaves out the main job, the slow tests and coverage: three minutes on two
cores, instead of 20 to 30.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOGETHER = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile")
"""One process of tests per core. Tests of a file stay together: they share fixtures."""


def step(name: str, *command: str, cwd: Path = ROOT) -> float:
    """Run a step; returns its seconds."""
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    status = subprocess.run([sys.executable, "-m", *command], cwd=cwd).returncode
    seconds = time.monotonic() - started
    print(f"== {name}: {'failed' if status else 'passed'} in {seconds:.0f} s", flush=True)
    if status:
        sys.exit(status)
    return seconds


def main_job() -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = ("h2gen", "a cat", "--tau1", "0.08", "--tau2", "0.2", "--seed", "7", "-v")
        seconds = step("main job", *command, cwd=Path(folder))
        if not (Path(folder) / "a-cat-7.png").stat().st_size:
            sys.exit("the main job made an empty picture")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="only lint, format, types and the fast tests")
    fast = parser.parse_args().fast
    # Small models gain nothing from threads, and lose on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Tests start programs, which would each compile the package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds = {
        "lint": step("lint", "ruff", "check", "."),
        "format": step("format", "ruff", "format", "--check", "."),
        "types": step("types", "mypy"),
    }
    if fast:
        seconds["fast tests"] = step("fast tests", "pytest", "-q", "-m", "not slow", *TOGETHER)
    else:
        seconds["main job"] = main_job()
        seconds["tests"] = step("tests", "pytest", "--cov", "--cov-report=term", "--durations=10", *TOGETHER)
    print(f"\n== all passed in {sum(seconds.values()):.0f} s: ", end="")
    print(", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items()))


if __name__ == "__main__":
    main()
