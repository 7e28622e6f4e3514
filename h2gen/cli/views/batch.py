"""A batch in the terminal: progress above, the current picture below; piped, one line per picture."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from h2gen.batches.jobs import Job
from h2gen.batches.messages import PictureMade, Ready
from h2gen.batches.observer import BatchObserver, Tally
from h2gen.batches.stop import Level
from h2gen.cache.trace import StepRecord
from h2gen.cli.console import complain, say, say_stopping
from h2gen.cli.views.live_table import cost_of, steps_table
from h2gen.cli.views.request import show_notice
from h2gen.cli.views.view import View, clock, progress
from h2gen.errors import H2GenError, Stopped
from h2gen.wording import printable


class BatchView(View, BatchObserver):
    """Shows a run and prints its pictures. Use as a context manager around it; it draws once there is work."""

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        super().__init__(console)
        self.wants_steps = console.is_terminal and not console.quiet
        self._as_json = as_json
        self._tally, self._workers = Tally(0), 0
        self._jobs: dict[int, Sequence[Job]] = {}
        self._rows: dict[int, deque[StepRecord]] = {}
        self._passes: dict[int, int] = {}
        self._where = "loading the model"
        self._began: float | None = None
        self._advice: str | None = None

    def __enter__(self) -> BatchView:
        return self  # ``counted`` starts it

    def notice(self, text: str) -> None:
        show_notice(text, self._console)

    def remark(self, text: str) -> None:
        say(self._console, text, "yellow")

    def counted(self, tally: Tally, duplicates: int, workers: int) -> None:
        self._tally, self._workers = tally, workers
        if tally.skipped:
            left = f"making the other {tally.left}" if tally.left else "--redo makes them again"
            say(self._console, f"{tally.skipped} of {tally.jobs} {tally.noun}s already exist: {left}.", "dim")
        if duplicates:
            one = f"1 {tally.noun} is a duplicate of another in this run; it is made once."
            several = f"{duplicates} {tally.noun}s are duplicates of others in this run; each is made once."
            say(self._console, one if duplicates == 1 else several, "dim")
        if tally.left:
            self.start()

    def ready(self, ready: Ready) -> None:
        self._where = f"{ready.device} {ready.dtype}"
        self._began = time.perf_counter()
        self.draw(now=True)

    def began(self, worker: int, jobs: Sequence[Job]) -> None:
        self._jobs[worker] = jobs
        self._rows[worker] = deque(maxlen=200)
        self._passes[worker] = 0

    def stepped(self, worker: int, record: StepRecord) -> None:
        if not record.picture:  # only the first picture of a batch is shown
            self._rows[worker].append(record)
        self._passes[worker] += 1
        self.draw()

    def saved(self, job: Job, path: Path, made: PictureMade, tally: Tally) -> None:
        line = f"{tally.jobs - tally.left}/{tally.jobs}  {path}  seed {made.settings.seed}, {made.seconds:.2f} s"
        line += cost_of(made.settings, made.summary)
        self._advice = self._advice or made.advice
        if made.nan_with_cache:
            line += "; NaN with the cache, made again without it"
        if not made.described:
            line += f"; its prompt is too long for the metadata of a {path.suffix}"
        say(self._console, line)
        self.draw(now=True)
        if self._as_json:
            place = {"path": str(path), "index": job.index, "source": job.source}
            print(json.dumps({**place, **made.metadata}), flush=True)
        elif self._console.quiet or not (self._console.is_terminal and sys.stdout.isatty()):
            print(path, flush=True)

    def split(self, jobs: Sequence[Job], error: str) -> None:
        one_by_one = f"making the {len(jobs)} {self._tally.noun}s of its batch one by one"
        say(self._console, f"{jobs[0].source}: {error.rstrip('.')}; {one_by_one}.", "yellow")
        self.draw(now=True)

    def relieved(self, job: Job, notice: str) -> None:
        say(self._console, f"{job.source}: {notice}", "yellow")
        self.draw(now=True)

    def failed(self, job: Job, error: str, again: bool, tally: Tally) -> None:
        fate = "trying once more" if again else "giving up"
        say(self._console, f"{job.source}: {error.rstrip('.')}; {fate}.", "yellow" if again else "red")
        self.draw(now=True)

    def stopping(self, level: Level) -> None:
        if level is Level.PICTURE:
            text = f"Stopping after the current {self._tally.noun}; press Ctrl-C again to stop after the current step."
            say(self._console, text, "yellow")
        elif level is Level.STEP:
            say_stopping(self._console)

    def ended(self, tally: Tally, seconds: float, failures_file: Path | None, error: H2GenError | None) -> None:
        self.stop()
        if tally.failed:
            complain(f"{tally.failed} of {tally.jobs} {tally.noun}s failed; they are listed in {str(failures_file)!r}.")
        if tally.left or tally.made or tally.failed:
            say(self._console, "; ".join([*totals(tally), f"{clock(seconds)} in all."]), "bold")
        if self._advice is not None and tally.steps.full == tally.steps.steps:
            say(self._console, self._advice, "yellow")
        if tally.made and error is not None and not isinstance(error, Stopped):
            say(self._console, f"The run ended early. {tally.left_words}; run the same command to continue.", "yellow")

    def render(self) -> RenderableType:
        width, height = self._console.size
        parts: list[RenderableType] = [Text(), *self._overall(width)]
        busy = sorted(self._jobs)
        for worker in busy[1:]:
            parts.append(self._line(worker))
        if busy:
            job = self._jobs[busy[0]][0]
            parts += [Text(), _cut(printable(job.settings.title), "bold"), self._line(busy[0])]
            room = height - len(parts) - 3
            if self._rows[busy[0]] and room > 0:
                rows = list(self._rows[busy[0]])[-room:]
                parts.append(steps_table(rows, job.settings.cache, width, job.settings.cfg > 1))
        return Group(*parts)

    def _overall(self, width: int) -> list[RenderableType]:
        tally = self._tally
        done = tally.jobs - tally.left
        line = progress(done, tally.jobs, f"{done}/{tally.jobs} {tally.noun}s", self._time_left(), width)
        return [line, *(_cut(part, "") for part in totals(tally))]

    def _time_left(self) -> str:
        if self._began is None or not self._tally.made:
            return self._where
        each = (time.perf_counter() - self._began) / self._tally.made
        return f"{clock(each * self._tally.left)} left"

    def _line(self, worker: int) -> Text:
        """One line about a worker's current pictures; a narrow terminal cuts off its end, so the seed comes first."""
        jobs = self._jobs[worker]
        settings = jobs[0].settings
        others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        done = f"{self._passes[worker]}/{settings.passes * len(jobs)}"
        facts = f"seed {settings.seed}{others} · {done} · {settings.width}x{settings.height}"
        if self._workers > 1 or len(self._jobs) > 1:
            facts = f"{worker + 1}: {facts} · {printable(settings.title)}"
        return _cut(facts, "dim")


def totals(tally: Tally) -> list[str]:
    """Pictures made, existing and failed; what the cache did for them, with the share of each kind of step."""
    counts = {"made": tally.made, "already existed": tally.skipped, "failed": tally.failed}
    parts = [", ".join(f"{count} {word}" for word, count in counts.items() if count) or "0 made"]
    steps = tally.steps
    if steps.steps and steps.blocks_run != steps.blocks_total:
        parts[0] += f"; est. {steps.estimated_speedup:.2f}x"
        shares = [f"{count / steps.steps:.0%} {word}" for word, count in steps.by_outcome()]
        parts.append("steps: " + ", ".join(shares))
    return parts


def _cut(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
