"""The command line: commands, and what they print. Nothing else prints."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``h2gen`` and exit: 0, 1 a run failed, 2 wrong usage, 130 stopped by Ctrl-C."""
    from h2gen.cli.app import run

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is printed as it is, whatever its bytes
    status = run(list(sys.argv[1:] if arguments is None else arguments))
    if status == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C must not kill an orderly exit
    sys.exit(status)
