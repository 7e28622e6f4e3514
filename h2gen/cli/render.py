"""A plan becomes pictures on the disk, watched in the terminal: what ``generate``, ``replay`` and ``shell`` share."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.errors import Stopped
from h2gen.wording import printable

if TYPE_CHECKING:
    from rich.console import Console

    from h2gen.cache.trace import StepRecord, Summary
    from h2gen.generation.session import Result, Session
    from h2gen.models.content_hash import Identity
    from h2gen.output.metadata import Metadata
    from h2gen.output.save import Target
    from h2gen.output.trace_file import TraceFile
    from h2gen.settings.resolve import Request
    from h2gen.settings.values import Settings


@dataclass(frozen=True)
class RenderOptions:
    """What the caller wants beside the picture."""

    trace: Path | None = None
    as_json: bool = False
    verbose: bool = False
    metadata: bool = True
    sidecar: bool = False
    batch_size: int = 1


def tell(plan: Request, console: Console) -> None:
    """Lines that the user should see before it begins."""
    from h2gen.cli.console import say

    for notice in plan.notices:
        say(console, notice, "dim")


def show_plan(plan: Request, seeds: Sequence[int | str], as_json: bool, prompt_source: str = "option") -> None:
    """Every setting, and where it came from."""
    plan = replace(
        plan, resolved={**plan.resolved, "seed": replace(plan.resolved["seed"], value=",".join(map(str, seeds)))}
    )
    if as_json:
        settings = {name: {"value": item.value, "source": item.source} for name, item in sorted(plan.resolved.items())}
        print(json.dumps({"prompt": plan.settings.prompt, "settings": settings}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for title in ("setting", "value", "from"):
        table.add_column(title)
    table.add_row("prompt", Text(printable(plan.settings.prompt)), prompt_source)
    for name, item in plan.resolved.items():
        table.add_row(name.replace("_", "-"), Text(printable(str(item.value))), Text(item.source))
    Console(highlight=False, markup=False, emoji=False).print(table)


def produce(
    plan: Request,
    seeds: Sequence[int],
    console: Console,
    wishes: RenderOptions,
    loaded: Callable[[Renderer], None] = lambda _studio: None,
    *,
    tiled: bool = False,
) -> None:
    """Check where things go, load, and make a picture of each seed; each is safe before the next ones begin.

    ``loaded`` is called once the model is there. ``tiled`` has the pictures decoded in tiles.
    """
    from h2gen.output.save import target_of
    from h2gen.output.trace_file import TraceFile

    target = target_of(plan.out, plan.format)
    if wishes.trace is not None:
        TraceFile.check(wishes.trace)
    renderer = open_renderer(plan, console, wishes)
    tell(plan, console)
    loaded(renderer)
    several = target.stem is not None and len(seeds) > 1
    targets = [replace(target, stem=f"{target.stem}-{seed}") if several else target for seed in seeds]
    settings = [replace(plan.settings, seed=seed) for seed in seeds]
    for done in range(0, len(seeds), wishes.batch_size):
        part = slice(done, done + wishes.batch_size)
        try:
            renderer.paint_together(settings[part], targets[part], plan.preset, tiled=tiled)
        except KeyboardInterrupt:
            if not done:
                raise
            raise Stopped(f"Stopped; {done} of {len(seeds)} pictures are saved.") from None


def open_renderer(plan: Request, console: Console, wishes: RenderOptions) -> Renderer:
    """Load the plan's model."""
    from rich.text import Text

    from h2gen.cli.console import route_warnings

    waiting: AbstractContextManager[Any] = nullcontext()
    if console.is_terminal:
        waiting = console.status(Text(f"Loading {printable(plan.checkpoint.name)}"))
    with waiting:
        # Only now: these load torch and diffusers, which takes seconds.
        from h2gen.generation.session import open_session
        from h2gen.models.content_hash import Identity

        route_warnings(console, wishes.verbose)
        session = open_session(plan.checkpoint, device=plan.device, dtype=plan.dtype, offload=plan.offload)
        identity = Identity(plan.checkpoint)
    return Renderer(session, identity, console, wishes)


class Renderer:
    """A loaded model with a terminal before it."""

    def __init__(self, session: Session, identity: Identity, console: Console, wishes: RenderOptions) -> None:
        self.session = session
        self._identity, self._console, self._wishes = identity, console, wishes
        self._where = {
            "model": session.checkpoint.name,
            "device": str(session.device),
            "dtype": str(session.dtype).removeprefix("torch."),
        }

    def paint(self, settings: Settings, target: Target, preset: str | None, *, tiled: bool = False) -> Path:
        """Make one picture, save it and say so; as ``paint_together``."""
        return self.paint_together([settings], [target], preset, tiled=tiled)[0]

    def paint_together(
        self, settings: Sequence[Settings], targets: Sequence[Target], preset: str | None, *, tiled: bool = False
    ) -> list[Path]:
        """Make pictures in one batch, save them and say so.

        Raises:
            KeyboardInterrupt: it was stopped.
            H2GenError: it could not be made or saved.
        """
        from h2gen.output.save import save
        from h2gen.output.trace_file import TraceFile

        # Before anything is made: a checkpoint that cannot be told apart must not cost a finished picture.
        content_hash = self._content_hash() if self._wishes.metadata or self._wishes.sidecar else ""
        trace = self._wishes.trace
        file = None if trace is None else TraceFile(trace, {**settings[0].to_json(), **self._where})
        summaries: list[Summary | None] = [None]
        try:
            with stoppable(self.session, self._console):
                results = self._watch(settings, None if file is None else file.on_step, tiled)
            summaries = [None if result.trace is None else result.trace.summary for result in results]
        finally:
            if file is not None:
                file.close(summaries[0])
        paths = []
        for result, summary, target in zip(results, summaries, targets, strict=True):
            metadata, sidecar = self._description(result, summary, target.format, preset, content_hash)
            made = result.settings
            paths.append(save(result.image, target, made.prompt, made.seed, metadata=metadata, sidecar=sidecar))
            self._report(result, paths[-1], file, summary)
        return paths

    def differences(self, found: Metadata) -> Iterator[str]:
        """What is not as it was when a picture was made."""
        from h2gen.output.metadata import origin
        from h2gen.output.replay import differences

        return differences(found, origin(self.session, self._content_hash()))

    def _content_hash(self) -> str:
        from h2gen.models.translate_errors import translated

        with translated(self.session.checkpoint):
            return self._identity.result()

    def _description(
        self, result: Result, summary: Summary | None, format: str, preset: str | None, content_hash: str
    ) -> tuple[Any, str | None]:
        """What the picture says of itself, and the text beside it."""
        if not self._wishes.metadata and not self._wishes.sidecar:
            return None, None
        from h2gen.cli.console import say
        from h2gen.output.metadata import describe, fitting, origin, to_toml

        whole = describe(
            result.settings,
            origin(self.session, content_hash),
            seconds=result.seconds,
            summary=summary,
            uncached=result.uncached,
            tiled=result.tiled,
            together=result.together,
            preset=preset,
        )
        metadata = fitting(whole, format) if self._wishes.metadata else None
        if metadata is None and self._wishes.metadata:
            say(self._console, f"The prompt is too long for the metadata of a .{format}; use png.", "yellow")
        return metadata, to_toml(whole) if self._wishes.sidecar else None

    def _watch(
        self, together: Sequence[Settings], on_step: Callable[[StepRecord], None] | None, tiled: bool
    ) -> list[Result]:
        """Run with whoever wants to watch: the live table, the trace file, both or nobody."""
        from rich.text import Text

        from h2gen.cli.views.live_table import LiveTable
        from h2gen.models.choices import SOLVERS

        console = self._console
        if console.quiet or not console.is_terminal:
            return self.session.run_together(together, on_step=on_step, tiled=tiled)
        settings = together[0]
        passes = 2 if settings.cfg > 1 else 1
        cache = settings.cache
        thresholds = cache.words if cache.enabled else "no cache"
        solver = "" if settings.solver == "own" else f" of {SOLVERS[settings.solver]}"
        guidance = f"cfg {settings.cfg:g}" if passes == 2 else f"guidance {settings.guidance:g}"
        seeds = ",".join(str(each.seed) for each in together)
        facts = (
            f"{self._where['model']} · {settings.width}x{settings.height} · {settings.steps} steps{solver} · "
            f"seed {seeds} · {guidance} · {thresholds} · {self._where['device']} {self._where['dtype']}"
        )
        heading = [
            Text(printable(settings.prompt), style="bold", no_wrap=True, overflow="ellipsis"),
            Text(printable(facts), style="dim", no_wrap=True, overflow="ellipsis"),
        ]
        with LiveTable(console, heading, cache, settings.passes * len(together), contexts=passes == 2) as table:

            def both(record: StepRecord) -> None:
                table.on_step(record)
                if on_step is not None:
                    on_step(record)

            return self.session.run_together(together, on_step=both, tiled=tiled)

    def _report(self, result: Result, path: Path, file: TraceFile | None, summary: Summary | None) -> None:
        from h2gen.cli.console import complain
        from h2gen.cli.views.live_table import steps_table

        console, settings = self._console, result.settings
        if file is not None and file.error is not None:
            complain(f"The trace {str(self._wishes.trace)!r} is not complete: {file.error}. The picture is.")
        if self._wishes.verbose and result.trace is not None and not console.is_terminal:
            table = steps_table(result.trace.steps, settings.cache, 100, contexts=settings.cfg > 1)
            console.print(table, width=100, crop=False)  # a pipe has no width to keep to
        conclude(result, path, console)
        if self._wishes.as_json:
            made = {
                "path": str(path),
                **settings.to_json(),
                **self._where,
                "seconds": result.seconds,
                "uncached": result.uncached,
                "cache": None if summary is None else summary.to_json(),
            }
            print(json.dumps(made), flush=True)
        elif console.quiet or not (console.is_terminal and sys.stdout.isatty()):
            print(path, flush=True)  # whoever sits at the terminal has just read it


@contextmanager
def stoppable(session: Session, console: Console) -> Iterator[None]:
    """The first Ctrl-C ends after the step in hand, the second at once."""

    from h2gen.cli.console import say

    def stop(_signal: int, _frame: Any) -> None:
        session.interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say(console, "Stopping after this step; press Ctrl-C again to stop at once.", "yellow")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        session.forget_interrupt()  # one that came after the last step is not meant for the next picture


def conclude(result: Result, path: Path, console: Console) -> None:
    """The last line, and advice where the cache did nothing."""
    from h2gen.cache.outcome import Outcome
    from h2gen.cache.trace import suggest_thresholds
    from h2gen.cli.console import complain, say
    from h2gen.cli.views.live_table import counts

    if result.uncached:
        complain("The picture came out as NaN with the cache; it was made once more without it.")
    line = f"{path}  seed {result.settings.seed}, {result.seconds:.2f} s"
    if result.trace is None or not result.settings.cache.enabled:
        say(console, line, "bold")
        return
    summary, steps = result.trace.summary, result.trace.steps
    if not console.is_terminal:  # where the totals stand under the table
        passes = any(step.context != steps[0].context for step in steps)
        line = f"{line}, {counts(summary, passes)}"
    say(console, line, "bold")
    if summary.full < summary.steps or result.settings.cache.plan:
        return
    tau1, tau2 = suggest_thresholds(steps)
    options = [f"--tau{n} {tau:g}" for n, tau in ((1, tau1), (2, tau2)) if tau is not None]
    errors = [step.error for step in steps if step.error is not None and math.isfinite(step.error)]
    if errors:
        enough = float(f"{1.05 * min(errors):.2g}")
        advice = f"; --tolerance {enough:g} would have skipped a step, by the errors that it foretold"
    elif options:
        advice = f"; {' '.join(options)} would have, by the changes that it saw"
    elif any(step.structure.outcome is Outcome.GUARDED for step in steps):
        advice = ": its guards kept every step full; take more steps, or fewer --warmup-steps and --final-steps"
    else:
        advice = ": there were too few steps"
    say(console, f"The cache reused nothing{advice}.", "yellow")
