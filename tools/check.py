"""The gate: lint, types, tests with coverage, and the main job on the bundled model. Stops at the first that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def step(name: str, *command: str, cwd: Path = ROOT) -> None:
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    status = subprocess.run([sys.executable, "-m", *command], cwd=cwd).returncode
    print(f"== {name}: {'failed' if status else 'passed'} in {time.monotonic() - started:.0f} s", flush=True)
    if status:
        sys.exit(status)


def main() -> None:
    # Tests of small models gain nothing from threads, and lose to them on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    step("lint", "ruff", "check", ".")
    step("format", "ruff", "format", "--check", ".")
    step("types", "mypy")
    with tempfile.TemporaryDirectory() as folder:
        step("main job", "h2gen", "a cat", "--tau1", "0.08", "--tau2", "0.2", "--seed", "7", "-v", cwd=Path(folder))
        if not (Path(folder) / "a-cat-7.png").stat().st_size:
            sys.exit("the main job made an empty picture")
    step("tests", "pytest", "--cov", "--cov-report=term", "--durations=10")


if __name__ == "__main__":
    main()
