"""Measure what only a GPU can show: one command for the day one is there. Under 8 minutes on one H200-class card.

    python tools/gpu_day.py OUT_FOLDER                     # all parts
    python tools/gpu_day.py OUT_FOLDER --parts eager,fp8   # some of them; redoes them if the folder has results
    python tools/gpu_day.py OUT_FOLDER --small             # a tiny model on the CPU: tests this command

A FLUX.1-size transformer of random weights at 1024x1024; no checkpoint is needed, and nothing is downloaded. Results
are in OUT_FOLDER: results.md to read, results.json, and log.txt with what the parts printed. Both files of results are
written after every figure. Each part is a process with a time limit of its own: one that fails or is killed at its
limit keeps its figures, and the next one begins. Exit status: 0 if all parts that ran are done, 1 if some are not or
the results could not be written, 2 if nothing could be run, 130 if it was stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that neither h2gen nor its tools need be installed

from tools.gpu.process import Part, Result, run  # noqa: E402
from tools.gpu.report import read, write  # noqa: E402

TOTAL = 470.0
"""Seconds for all parts together."""
PARTS = (
    Part("eager", "each outcome, the checks, plans and a batch of 4, in bfloat16", "tools.gpu.parts:eager", 90),
    Part("compiled", "the same with compiled blocks", "tools.gpu.parts:compiled", 105),
    Part("fp8", "the same with compiled, quantized blocks", "tools.gpu.parts:fp8", 100),
    Part("known", "launches and waits of steps that a plan decides", "tools.gpu.parts:known", 45),
    Part("others", "diffusers' FirstBlockCache and cache-dit at the same plans", "tools.gpu.parts:others", 45),
    Part(
        "offload",
        "weights in main memory, fetched block by block; shares are of h2gen's full step",
        "tools.gpu.parts:offload",
        45,
    ),
    Part("tests", "the tests that need a GPU", "tools.gpu.parts:tests", 40),
)
OPTIONAL = ("torchao", "cache-dit")
"""Packages that may be installed between a part's failure and its repetition."""
LEAST = 10.0
"""Seconds below which a part is not begun."""


def machine(small: bool) -> dict[str, Any]:
    """What is measured on, and with which versions."""
    facts: dict[str, Any] = {"device": "CPU, a tiny model: the times mean nothing"}
    if not small:
        import torch

        each = torch.cuda.get_device_properties(0)
        facts = {"device": each.name, "memory": f"{each.total_memory / 2**30:.0f} GiB", "CUDA": torch.version.cuda}
    facts["Python"] = sys.version.split()[0]
    for package in ("torch", "diffusers", *OPTIONAL):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing"
    return facts


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def chosen(names: str | None) -> list[Part]:
    if names is None:
        return list(PARTS)
    known = {part.name: part for part in PARTS}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            stop(f"There is no part {name!r}; choose from {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys(wanted)]


def earlier(folder: Path, small: bool) -> list[Result]:
    """The results in the folder, if they are of this machine, so that a part can be redone among them."""
    try:
        before, results = read(folder)
    except ValueError as error:
        stop(str(error))
    for key, now in machine(small).items():
        if key not in OPTIONAL and before.get(key) != now:
            stop(f"{folder} holds results already, of {key} {before.get(key)}, not {now}; give another folder.")
    return results


def stop(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT_FOLDER", type=Path, help="for the results; is made if it is missing")
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU")
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--parts", metavar="NAMES", help=f"some of {names}; the folder keeps the results of the others")
    given = parser.parse_args()
    folder, parts, results = given.folder, chosen(given.parts), list[Result]()
    if not given.small and not has_gpu():
        stop("No CUDA GPU here: this measures one. --small tests the command on the CPU.")
    if (folder / "results.json").exists():
        if given.parts is None:
            stop(f"{folder} holds results already; give another folder, or --parts NAMES to redo some.")
        results = earlier(folder, given.small)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").touch()
    except OSError as error:
        stop(f"{folder} cannot hold the results ({error.strerror}); give another folder.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started ends, too
    try:
        status = measure(parts, folder, given.small, results=results)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        status = 130
    except OSError as error:
        print(f"{folder} could not hold all results ({error.strerror}); give another folder.", file=sys.stderr)
        status = 1
    sys.exit(status)


def measure(parts: list[Part], folder: Path, small: bool, total: float = TOTAL, results: Sequence[Result] = ()) -> int:
    """Run the parts one after another. Returns the exit status.

    Args:
        results: of an earlier run, which are kept but for these parts'.
    """
    started, facts = time.monotonic(), machine(small)
    by_name = {result.name: result for result in results}

    def changed(result: Result) -> None:
        by_name[result.name] = result
        write(folder, facts, list(by_name.values()))

    for part in parts:
        limit = min(part.limit, started + total - time.monotonic())
        if limit < min(LEAST, part.limit):
            result = Result(part.name, part.title, part.limit, "failed", error=["No time was left for it."])
            changed(result)
        else:
            result = run(part, small=small, limit=limit, log=folder / "log.txt", changed=changed)
        print(f"{part.name}: {result.status} in {result.seconds:.0f} s", flush=True)
    print(folder / "results.md")
    return 0 if all(by_name[part.name].status == "done" for part in parts) else 1


if __name__ == "__main__":
    main()
