"""``h2gen batch FILE...``: many pictures, none of them lost."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from h2gen.cli import options
from h2gen.errors import DeviceError, H2GenError, SettingError, Stopped
from h2gen.wording import printable

if TYPE_CHECKING:
    from rich.console import Console

    from h2gen.batches.batch import Batch
    from h2gen.batches.jobs import Jobs

_BATCH = "Batch"


def batch(
    files: Annotated[
        list[str], typer.Argument(help="Prompts as .txt, .yaml or .jsonl; - reads stdin.", metavar="FILE...")
    ],
    prompt_key: Annotated[
        str | None, options.option("--prompt-key", help="The key of the prompt in .jsonl.", panel=_BATCH, metavar="KEY")
    ] = None,
    name: Annotated[
        str | None,
        options.option("--name", help="Names of the pictures: {index:04}-{slug}-{seed}.", panel=_BATCH),
    ] = None,
    shard: Annotated[
        str | None, options.option("--shard", help="Only this part of the jobs: 3/16.", panel=_BATCH, metavar="I/N")
    ] = None,
    redo: Annotated[
        bool, options.option("--redo", help="Make the pictures that are there already once more.", panel=_BATCH)
    ] = False,
    gpus: Annotated[
        str | None, options.option("--gpus", help="all, or 0,1: a process each.", panel=_BATCH, metavar="LIST")
    ] = None,
    seed: options.Seeds = None,
    count: options.Count = None,
    batch_size: options.BatchSize = 1,
    size: options.Size = None,
    steps: options.Steps = None,
    solver: options.Solver = None,
    guidance: options.Guidance = None,
    cfg: options.Cfg = None,
    negative: options.Negative = None,
    max_sequence_length: options.MaxSequenceLength = None,
    preset: options.Preset = None,
    tau1: options.Tau1 = None,
    tau2: options.Tau2 = None,
    warmup_steps: options.WarmupSteps = None,
    final_steps: options.FinalSteps = None,
    max_consecutive: options.MaxConsecutive = None,
    forecast: options.Forecast = None,
    plan: options.Plan = None,
    tolerance: options.Tolerance = None,
    budget: options.Budget = None,
    hierarchy: options.Hierarchy = None,
    max_detail_age: options.MaxDetailAge = None,
    pfs: options.Pfs = None,
    no_cache: options.NoCache = False,
    speedup: options.Speedup = None,
    fidelity: options.Fidelity = None,
    nearest: options.Nearest = False,
    model: options.Model = None,
    base: options.Base = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offload: options.Offload = None,
    out: options.OutFolder = None,
    format: options.Format = None,
    no_metadata: options.NoMetadata = False,
    sidecar: options.Sidecar = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Make a picture of every prompt in FILE. The same command again makes only what is missing.

    Example: h2gen batch prompts.txt --out pictures --preset quality
    """
    given = options.settings_in(locals())
    from h2gen.batches.jobs import Jobs, parse_shard
    from h2gen.batches.prompts import read_prompts
    from h2gen.cli.console import make_console
    from h2gen.output.save import target_of
    from h2gen.settings.speedup import Goal

    console = make_console()
    console.quiet = quiet
    part = None if shard is None else parse_shard(shard)
    wish = Goal(speedup, fidelity, nearest)
    jobs = Jobs(read_prompts(files, prompt_key), {**given, "name": name}, wish=wish)
    target = target_of(jobs.plan.out, jobs.plan.format)
    if target.stem is not None:
        raise SettingError(f"out is {jobs.plan.out!r}; a batch needs a folder for its pictures.")
    from h2gen.batches.batch import Batch, BatchOptions  # torch comes along, which a mistake above need not wait for

    wishes = BatchOptions(part, redo, not no_metadata, sidecar, options.check_batch_size(batch_size))
    run = Batch(jobs, target.folder, target.format, wishes, _devices(gpus, device))
    if dry_run:
        _tell(jobs, console)
        _show(run, as_json)
        return
    if not _make(run, jobs, console, as_json, verbose):
        raise typer.Exit(1)


def _devices(gpus: str | None, device: str | None) -> list[str]:
    """The devices that ``--gpus`` names: numbers of CUDA devices, or devices as ``--device`` takes them."""
    if gpus is None:
        return []
    if device is not None:
        raise SettingError("--gpus and --device contradict each other; give one.")
    if gpus.strip() == "all":
        from h2gen.models.memory import devices

        count = devices().get("cuda", 0)
        if not count:
            raise DeviceError("There is no CUDA device here for --gpus all; leave it out.")
        return [f"cuda:{index}" for index in range(count)]
    names = [f"cuda:{part.strip()}" if part.strip().isdecimal() else part.strip() for part in gpus.split(",")]
    if not all(names):
        raise SettingError(f"gpus is {gpus!r}; give all, or numbers such as 0,1.")
    return names


def _tell(jobs: Jobs, console: Console) -> None:
    """Lines that the user should see before it begins."""
    from h2gen.cli.console import say

    for notice in jobs.notices:
        say(console, notice, "dim")


def _show(run: Batch, as_json: bool) -> None:
    """What would be made, a line a picture."""
    from rich.console import Console
    from rich.text import Text

    done = run.made()
    lines = Console(highlight=False, markup=False, emoji=False)
    for identity, job in run:
        path = done.get(identity)
        name = run.name(identity, job) if path is None else path.name
        if as_json:
            facts = {"id": identity, "source": job.source, "name": name, "path": None if path is None else str(path)}
            print(json.dumps({**facts, **job.settings.to_json()}))
        else:
            state = "to make" if path is None else "is there"
            settings = job.settings
            size = f"{settings.width}x{settings.height}, {settings.steps} steps"
            text = f"{state}  {name}  seed {settings.seed}, {size}  {printable(settings.prompt)}"
            lines.print(Text(text, no_wrap=True, overflow="ellipsis"), soft_wrap=not lines.is_terminal)


def _make(run: Batch, jobs: Jobs, console: Console, as_json: bool, verbose: bool) -> bool:
    """Make what is missing; returns whether nothing failed.

    Raises:
        Stopped: it was stopped before its end.
        H2GenError: the run could not go on; what was made before is safe.
    """
    from h2gen.batches.stop import Level, Stop
    from h2gen.cli.console import complain, route_warnings, say
    from h2gen.cli.views.batch import BatchView, totals
    from h2gen.cli.views.view import clock

    route_warnings(console, verbose)
    _tell(jobs, console)

    def on_change(level: Level) -> None:
        if level is Level.PICTURE:
            say(console, "Stopping after the picture in hand; Ctrl-C again: after the step in hand.", "yellow")
        elif level is Level.STEP:
            say(console, "Stopping after the step in hand; Ctrl-C again: at once.", "yellow")

    started = time.monotonic()
    with run.opened() as tally:
        if tally.skipped:
            left = f"making the other {tally.left}" if tally.left else "nothing is left to make; --redo makes all again"
            say(console, f"{tally.skipped} of {tally.jobs} pictures are there already: {left}.", "dim")
        if run.twins:
            say(console, f"{run.twins} pictures would be the same as others of this run; they are made once.", "dim")
        if not tally.left:
            return True
        interrupted = False
        error: H2GenError | None = None
        with Stop(on_change) as stop, BatchView(console, tally, run.workers, as_json=as_json) as view:
            try:
                run.run(tally, view, stop, watched=console.is_terminal and not console.quiet)
            except KeyboardInterrupt:
                interrupted = True
            except H2GenError as failure:
                error = failure
    if tally.failed:
        complain(f"{tally.failed} of {tally.jobs} pictures failed; they are listed in {str(run.failures)!r}.")
    seconds = time.monotonic() - started
    say(console, f"{totals(tally)}; {clock(seconds)} in all.", "bold")
    go_on = f"with {tally.left} left to make; the same command goes on with them."
    if error is not None:
        if tally.made:
            say(console, f"It ended {go_on}", "yellow")
        raise error
    if interrupted or stop.level is not Level.NEVER:
        raise Stopped(f"Stopped {go_on}", 143 if stop.terminated else 130)
    return not tally.failed
