"""Parts for the tests of ``tools/gpu_day.py`` that go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from tools.gpu.process import Report


def hangs(_small: bool, report: Report) -> None:
    """Reports a figure and its child's number, and never ends."""
    report("before", 1.5, "s", most=2)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        report("child", child.pid)
        print("waiting for what never comes", flush=True)
        time.sleep(600)


def fails(_small: bool, report: Report) -> None:
    report("before", 3)
    raise ValueError("no such kernel")


def dies(_small: bool, report: Report) -> None:
    report("before", 3)
    print("about to die", flush=True)
    os._exit(3)


def is_killed(_small: bool, report: Report) -> None:
    report("before", 3)
    os.kill(os.getpid(), signal.SIGKILL)


def fails_here_and_there(_small: bool, report: Report) -> None:
    with report.attempt("first"):
        raise ValueError("no such kernel")
    report("after", 3)


def offload_with_broken_plans(small: bool, report: Report) -> None:
    from tools.gpu import parts

    def broken(*_: Any) -> None:
        raise ValueError("no such plan")

    vars(parts)["planned"] = broken  # in this process alone
    parts.offload(small, report)


def offload_with_a_broken_step(small: bool, report: Report) -> None:
    from tools.gpu import parts

    whole = parts.offload_groups

    def broken(*given: Any, ahead: bool = True) -> Any:
        if ahead:
            raise ValueError("no such step")
        return whole(*given, ahead=ahead)

    vars(parts)["offload_groups"] = broken  # in this process alone
    parts.offload(small, report)


def works(_small: bool, report: Report) -> None:
    report("share", 0.002, "%", most=0.003)
    report("speed-up", 0.9, "x", least=0.97)
    report("slow", 2.0, "s", most=1, timed=True)
