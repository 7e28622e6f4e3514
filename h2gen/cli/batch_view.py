"""A run of many pictures as it goes on: progress above, the picture in hand beneath; piped, a line a picture."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from h2gen.cache.trace import StepRecord
from h2gen.cli.console import say
from h2gen.cli.live import by_outcome, steps_table
from h2gen.run.jobs import Job
from h2gen.run.schedule import Tally
from h2gen.run.worker import Made, Ready
from h2gen.words import printable

_REDRAW = 0.1
"""Seconds between two drawings."""


class BatchView:
    """Watches a run. Use as a context manager around it."""

    def __init__(self, console: Console, tally: Tally, workers: int, *, as_json: bool = False) -> None:
        self._console, self._tally, self._as_json = console, tally, as_json
        self._workers = workers
        self._jobs: dict[int, Sequence[Job]] = {}
        self._rows: dict[int, deque[StepRecord]] = {}
        self._passes: dict[int, int] = {}
        self._where = "loading the model"
        self._began: float | None = None
        self._drawn = 0.0
        self._live: Live | None = None
        if console.is_terminal and not console.quiet:
            self._live = Live(
                console=console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
                transient=True,
                get_renderable=self.render,
            )

    def __enter__(self) -> BatchView:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def ready(self, ready: Ready) -> None:
        self._where = f"{ready.device} {ready.dtype}"
        self._began = time.perf_counter()
        self._draw(now=True)

    def began(self, worker: int, jobs: Sequence[Job]) -> None:
        self._jobs[worker] = jobs
        self._rows[worker] = deque(maxlen=200)
        self._passes[worker] = 0

    def stepped(self, worker: int, record: StepRecord) -> None:
        if not record.picture:  # of several at once the first is shown
            self._rows[worker].append(record)
        self._passes[worker] += 1
        self._draw()

    def made(self, job: Job, path: Path, made: Made, tally: Tally) -> None:
        line = f"{tally.jobs - tally.left}/{tally.jobs}  {path}  seed {made.settings.seed}, {made.seconds:.2f} s"
        if made.summary is not None and made.settings.cache.enabled:
            line += f", {made.summary.share:.0%} of blocks, est. {made.summary.estimated_speedup:.2f}x"
        if made.uncached:
            line += "; NaN with the cache, made without it"
        if not made.described:
            line += f"; its prompt is too long for the metadata of a {path.suffix}"
        say(self._console, line)
        self._draw(now=True)
        if self._as_json:
            cache = None if made.summary is None else made.summary.to_json()
            facts = {"path": str(path), "index": job.index, "source": job.source, **made.settings.to_json()}
            print(json.dumps({**facts, "seconds": made.seconds, "uncached": made.uncached, "cache": cache}), flush=True)
        elif self._console.quiet or not (self._console.is_terminal and sys.stdout.isatty()):
            print(path, flush=True)

    def parted(self, jobs: Sequence[Job], error: str) -> None:
        fate = f"making each of the {len(jobs)} of its batch alone"
        say(self._console, f"{jobs[0].source}: {error.rstrip('.')}; {fate}.", "yellow")
        self._draw(now=True)

    def failed(self, job: Job, error: str, again: bool, tally: Tally) -> None:
        fate = "trying once more" if again else "given up"
        say(self._console, f"{job.source}: {error.rstrip('.')}; {fate}.", "yellow" if again else "red")
        self._draw(now=True)

    def _draw(self, now: bool = False) -> None:
        if self._live is not None and (now or time.perf_counter() - self._drawn >= _REDRAW):
            self._live.refresh()
            self._drawn = time.perf_counter()

    def render(self) -> RenderableType:
        """What is seen, no higher than the terminal."""
        width, height = self._console.size
        parts: list[RenderableType] = [Text(), *self._overall(width)]
        hand = sorted(self._jobs)
        for worker in hand[1:]:
            parts.append(self._line(worker))
        if hand:
            job = self._jobs[hand[0]][0]
            parts += [Text(), _cut(printable(job.settings.prompt), "bold"), self._line(hand[0])]
            room = height - len(parts) - 3
            if self._rows[hand[0]] and room > 0:
                rows = list(self._rows[hand[0]])[-room:]
                parts.append(steps_table(rows, job.settings.cache, width, job.settings.cfg > 1))
        return Group(*parts)

    def _overall(self, width: int) -> list[RenderableType]:
        tally = self._tally
        bar = ProgressBar(total=tally.jobs, completed=tally.jobs - tally.left, width=max(8, min(30, width - 36)))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(bar, Text(f"{tally.jobs - tally.left}/{tally.jobs} pictures"), Text(self._time_left()))
        return [line, _cut(progress(tally), "")]

    def _time_left(self) -> str:
        if self._began is None or not self._tally.made:
            return self._where
        each = (time.perf_counter() - self._began) / self._tally.made
        return f"{clock(each * self._tally.left)} left"

    def _line(self, worker: int) -> Text:
        """One worker's picture in a line."""
        jobs = self._jobs[worker]
        settings = jobs[0].settings
        others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        done = f"{self._passes[worker]}/{settings.passes * len(jobs)}"
        facts = f"{settings.width}x{settings.height} · seed {settings.seed}{others} · {done}"
        who = f"{worker + 1}: {printable(settings.prompt)[:30]} · " if self._workers > 1 else ""
        return _cut(who + facts, "dim")


def progress(tally: Tally) -> str:
    """Pictures by what became of them, and what the cache did for them."""
    parts = [f"{tally.made} made", f"{tally.skipped} skipped", f"{tally.failed} failed"]
    steps = tally.steps
    if steps.steps and steps.blocks_run < steps.blocks_total:
        parts.append(f"est. {steps.estimated_speedup:.2f}x")
        shares = by_outcome(steps)
        parts.append("steps: " + ", ".join(f"{count / steps.steps:.0%} {name}" for name, count in shares))
    return "; ".join([", ".join(parts[:3]), *parts[3:]])


def clock(seconds: float) -> str:
    """``3:07``, ``2:03:07``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _cut(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
