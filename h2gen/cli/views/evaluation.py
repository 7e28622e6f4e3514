"""What the views of compare, frontier and tune share: the progress of measured runs, notices, and Ctrl-C."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from h2gen.cli.console import complain, say, say_stopping
from h2gen.cli.views.view import View, clock, progress
from h2gen.evaluation.number_format import duration, percent, reading
from h2gen.evaluation.number_format import seconds as seconds_in_words
from h2gen.evaluation.results import score
from h2gen.generation.interrupt import stop_on_ctrl_c
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method
    from h2gen.evaluation.metrics import MetricInfo
    from h2gen.evaluation.results import Sample
    from h2gen.generation.session import Session

GAP = 2
NARROW = 100
LABEL = 26
"""Characters of a method's name in terminals up to ``NARROW`` wide."""


class ComparisonProgress:
    """Which runs of a comparison are done, and the figures of each method so far.

    Args:
        metrics: what pictures are scored by.
    """

    def __init__(self, metrics: Sequence[MetricInfo]) -> None:
        self._metrics = metrics
        self._methods: dict[str, Method] = {}
        self._expected: dict[str, int] = {}
        self._seconds: dict[str, list[float]] = {}
        self._samples: dict[str, list[Sample]] = {}
        self._began = time.perf_counter()

    def expect(self, methods: Sequence[Method], runs: Mapping[str, int]) -> None:
        """Expect this many more runs of each method, in addition to those already done."""
        for method in methods:
            self._methods[method.name] = method
            done = self._seconds.setdefault(method.name, [])
            self._samples.setdefault(method.name, [])
            self._expected[method.name] = len(done) + runs[method.name]

    def expect_again(self, methods: Sequence[Method]) -> None:
        """One more run of each of these methods follows."""
        for method in methods:
            self._expected[method.name] += 1

    def ran(self, method: Method, seconds: float) -> None:
        self._seconds[method.name].append(seconds)

    def scored(self, method: Method, sample: Sample) -> None:
        self._samples[method.name].append(sample)

    @property
    def done(self) -> int:
        """Number of runs."""
        return sum(map(len, self._seconds.values()))

    @property
    def expected(self) -> int:
        """Number of runs, those that are done included."""
        return sum(self._expected.values())

    @property
    def left(self) -> float | None:
        """Estimated seconds for the remaining runs, including scoring; None before the first one is done.

        A method that has not run yet is estimated from its share of the blocks.
        """
        spent = sum(map(sum, self._seconds.values()))
        weight = sum(len(runs) * _weight(self._methods[name]) for name, runs in self._seconds.items())
        if not spent:
            return None
        seconds = 0.0
        for name, runs in self._seconds.items():
            each = statistics.median(runs) if runs else spent / weight * _weight(self._methods[name])
            seconds += each * max(0, self._expected[name] - len(runs))
        return seconds * max(1.0, (time.perf_counter() - self._began) / spent)

    def figures(self, method: Method) -> str:
        """A method's figures so far, in one line: ``14 steps: 0.905 s, 50 % of the blocks, PSNR 46.9 dB``."""
        made = self._samples[method.name]
        parts = [seconds_in_words(statistics.median(each for sample in made for each in sample.seconds))]
        if method.kind != "reference":
            parts.append(f"{percent(statistics.fmean(sample.share for sample in made))} of the blocks")
            parts += [
                f"{metric.title} {reading(metric, self._mean(made, metric))}"
                for metric in self._metrics[:1]
                if metric.fidelity
            ]
        return f"{method.label}: {', '.join(parts)}"

    @staticmethod
    def _mean(samples: Sequence[Sample], metric: MetricInfo) -> float:
        values = [sample.scores[metric.name] for sample in samples if metric.name in sample.scores]
        return score(values, metric.higher_is_better).mean if values else math.nan

    def render(self, width: int, height: int) -> list[RenderableType]:
        left = "" if self.left is None else f"{clock(self.left)} left"
        runs = max(self.done, self.expected)
        bar = progress(self.done, runs, f"{self.done}/{runs} runs", left, width)
        return [bar, Text(), self._table(width, max(1, height - 7))]

    def _table(self, width: int, room: int) -> Table:
        """The first ``room`` methods with their figures so far."""
        shown = self._metrics if width >= 60 else self._metrics[:1]
        figures = sum(len(title) + GAP for title in ("seconds", "blocks", *("identical" for _ in shown)))
        columns = [("method", "left"), ("seconds", "right"), ("blocks", "right")]
        table = methods_table(columns, width, longest=max(8, width - figures - GAP))
        for metric in shown:
            table.add_column(metric.title, justify="right", no_wrap=True)
        for method in list(self._methods.values())[:room]:
            seconds, samples = self._seconds[method.name], self._samples[method.name]
            cells = [f"{statistics.median(seconds):.3g}" if seconds else ""]
            cells.append(percent(statistics.fmean(sample.share for sample in samples)) if samples else "")
            for metric in shown:
                known = samples and not (method.kind == "reference" and metric.fidelity)
                cells.append(reading(metric, self._mean(samples, metric), unit=False) if known else "")
            table.add_row(Text(printable(method.label)), *cells)
        return table


def _weight(method: Method) -> float:
    """Estimated duration of a run, relative to the uncached one; a cache is assumed to save half."""
    return 0.5 if method.share is None else method.share


def methods_table(columns: Sequence[tuple[str, str]], width: int, *, whole: bool = False, longest: int = 1000) -> Table:
    """An empty table of methods with these columns (title, alignment).

    Long names are cut, so that each method stays on one line, or with ``whole`` continue on the next. ``longest`` is
    the most characters of a name, so that none of the figures are cut.
    """
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for title, justify in columns:
        most = min(longest, LABEL) if width <= NARROW else longest
        cut = not (whole and title == "method")
        table.add_column(
            title,
            justify="right" if justify == "right" else "left",
            no_wrap=cut,
            overflow="ellipsis" if cut else "fold",
            max_width=most if title == "method" else None,
        )
    return table


class EvaluationView(View):
    """An observer of an evaluation. Use as a context manager around it. Without a terminal, each part of the work is
    one line of text.

    Args:
        console: where progress and notices go; results go to stdout.
        as_json: print the result as JSON.
    """

    def __init__(self, console: Console, as_json: bool) -> None:
        super().__init__(console)
        self._as_json = as_json
        self._what = "Loading"
        self._progress: ComparisonProgress | None = None
        self._interruptible = ExitStack()

    def loaded(self, session: Session) -> None:
        stopping = stop_on_ctrl_c(session, lambda: say_stopping(self._console))
        self._interruptible.enter_context(stopping)

    def notice(self, message: str) -> None:
        say(self._console, message, "yellow")

    def warned(self, message: str) -> None:
        complain(message)

    def began(self, what: str) -> None:
        self._what = what
        self.tell(f"{what} ...")
        self.draw(now=True)

    def planned(self, methods: Sequence[Method], runs: Mapping[str, int], metrics: Sequence[MetricInfo]) -> None:
        self._progress = self._progress or ComparisonProgress(metrics)
        self._progress.expect(methods, runs)
        self._what = f"Measuring {len(methods)} methods"
        self.tell(f"{self._what} in {sum(runs.values())} runs ...")
        self.draw(now=True)

    def repeated(self, methods: Sequence[Method], case: int) -> None:
        if self._progress is not None:
            self._progress.expect_again(methods)
        if case == 0:
            names = methods[0].label if len(methods) == 1 else f"{len(methods)} methods"
            self.tell(f"Timing {names} once more: the runs so far differ by more than a tenth ...")
        self.draw(now=True)

    def ran(self, method: Method, case: int, seconds: float) -> None:
        if self._progress is not None:
            self._progress.ran(method, seconds)
        self.draw()

    def scored(self, method: Method, sample: Sample) -> None:
        if self._progress is not None:
            self._progress.scored(method, sample)
            if sample.case == 0:  # with several prompts, the first one's figures are enough
                left = self._progress.left if method.kind == "reference" else None
                more = "" if left is None else f"; about {duration(left)} left"
                self.tell(f"{self._progress.figures(method)}{more}")
            elif method.kind == "reference" and self._progress.left is not None:
                self.tell(f"Prompt {sample.case + 1} ...; about {duration(self._progress.left)} left")
        self.draw(now=True)

    def wrote(self, path: Path) -> None:
        say(self._console, str(path), "bold")

    def render(self) -> RenderableType:
        width, height = self._console.size
        measured = self._before(width) if self._progress is None else self._progress.render(width, height)
        return Group(Text(), Text(self._what, no_wrap=True, overflow="ellipsis"), *measured)

    def _before(self, width: int) -> list[RenderableType]:
        """What is shown before the measured runs are planned."""
        return []

    def stop(self) -> None:
        self._interruptible.close()
        super().stop()
