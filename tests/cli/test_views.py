"""What the views of a picture and of a batch do when memory runs out or Ctrl-C is pressed."""

from __future__ import annotations

import io
import signal
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from h2gen.batches.jobs import Job
from h2gen.cli.views.batch import BatchView
from h2gen.cli.views.picture import PictureView
from h2gen.settings.values import Settings


def test_a_batch_says_in_which_way_a_picture_is_tried_again() -> None:
    out = io.StringIO()
    job = Job(1, Settings("a cat", 1, 64, 64, 2), "", None, None, "p.txt:1")
    BatchView(Console(file=out, width=200)).relieved(job, "Out of memory on cpu; trying again with tiled decoding.")
    assert out.getvalue() == "p.txt:1: Out of memory on cpu; trying again with tiled decoding.\n"


def test_ctrl_c_between_two_attempts_at_a_picture_stops_the_next_one() -> None:
    events: list[str] = []
    session = SimpleNamespace(
        interrupt=lambda: events.append("interrupt"), forget_interrupt=lambda: events.append("forget")
    )
    renderer: Any = SimpleNamespace(session=session)
    view, settings = PictureView(Console(file=io.StringIO())), [Settings("a cat", 1, 64, 64, 2)]
    with view.interruptible(renderer):
        with view.making(renderer, settings):
            pass
        signal.raise_signal(signal.SIGINT)  # while the model is loaded again
        with view.making(renderer, settings):
            assert events == ["interrupt"]
    assert events == ["interrupt", "forget"]
