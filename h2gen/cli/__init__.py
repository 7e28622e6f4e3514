"""The command line: commands, and what they print. Nothing else prints."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``h2gen`` and exit: 0, 1 a run failed, 2 wrong usage, 130 stopped by Ctrl-C."""
    from h2gen.cli.streams import make_safe

    output = make_safe()  # before anything is opened
    from h2gen.cli.app import run

    try:
        status = run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # one more Ctrl-C, after the first one was told
        status = 130
    if status == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the next one must not kill an orderly exit
    lost = output.lost()
    if lost is not None:
        status = status or 1
        if lost:
            from h2gen.cli.console import complain

            complain(f"Not everything could be written to stdout: {lost}.")
    sys.exit(status)
