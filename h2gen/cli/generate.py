"""``h2gen PROMPT``: make a picture and show each step's decisions."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from h2gen.errors import SettingError
from h2gen.words import did_you_mean, printable

if TYPE_CHECKING:
    from rich.console import Console

    from h2gen.cache.trace import StepRecord, Summary
    from h2gen.run.plan import Plan
    from h2gen.run.session import Result, Session

LONGEST_PROMPT = 100_000
"""Characters; no text encoder reads more than a few hundred words of it."""

_COMMANDS = ("presets", "models", "bench")

_PICTURE, _CACHE, _MODEL, _OUTPUT = "Picture", "Cache", "Model", "Output"


def _option(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False)


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to paint; - reads it from stdin.", metavar="PROMPT")
    ] = None,
    prompt_option: Annotated[
        str | None, _option("--prompt", "-p", help="The prompt, where it looks like a command.", panel=_PICTURE)
    ] = None,
    seed: Annotated[
        int | None, _option("--seed", help="Same seed, same picture. Random when left out.", panel=_PICTURE)
    ] = None,
    size: Annotated[
        str | None, _option("--size", help="1024x768, or a ratio such as 16:9.", panel=_PICTURE, metavar="SIZE")
    ] = None,
    steps: Annotated[int | None, _option("--steps", "-s", help="Denoising steps.", panel=_PICTURE)] = None,
    guidance: Annotated[float | None, _option("--guidance", help="Distilled guidance scale.", panel=_PICTURE)] = None,
    cfg: Annotated[
        float | None, _option("--cfg", help="True guidance, two passes a step; 1 is off.", panel=_PICTURE)
    ] = None,
    negative: Annotated[
        str | None, _option("--negative", help="What to steer away from; needs --cfg.", panel=_PICTURE)
    ] = None,
    max_sequence_length: Annotated[
        int | None, _option("--max-sequence-length", help="Tokens of text that the model sees.", panel=_PICTURE)
    ] = None,
    preset: Annotated[
        str | None, _option("--preset", help="A preset's name or file; see 'h2gen presets'.", panel=_CACHE)
    ] = None,
    tau1: Annotated[
        float | None, _option("--tau1", help="Threshold of the structure stage; 0 is off.", panel=_CACHE)
    ] = None,
    tau2: Annotated[
        float | None, _option("--tau2", help="Threshold of the detail stage; 0 is off.", panel=_CACHE)
    ] = None,
    warmup_steps: Annotated[
        int | None, _option("--warmup-steps", help="The first N steps are always full.", panel=_CACHE)
    ] = None,
    final_steps: Annotated[
        int | None, _option("--final-steps", help="The last N steps are always full.", panel=_CACHE)
    ] = None,
    max_consecutive: Annotated[
        int | None, _option("--max-consecutive", help="At most N steps in a row without a full one.", panel=_CACHE)
    ] = None,
    no_cache: Annotated[bool, _option("--no-cache", help="Plain diffusers.", panel=_CACHE)] = False,
    model: Annotated[
        str | None,
        _option(
            "--model", "-m", help="Alias, hub id, folder, .safetensors or .gguf; see 'h2gen models'.", panel=_MODEL
        ),
    ] = None,
    base: Annotated[
        str | None, _option("--base", help="Model that supplies the rest of a single file.", panel=_MODEL)
    ] = None,
    device: Annotated[str | None, _option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu.", panel=_MODEL)] = None,
    dtype: Annotated[str | None, _option("--dtype", help="auto, bf16, fp16, fp32.", panel=_MODEL)] = None,
    offload: Annotated[
        str | None, _option("--offload", help="none, model, group, sequential, auto.", panel=_MODEL)
    ] = None,
    out: Annotated[
        str | None, _option("--out", "-o", help="A folder, or a .png, .jpg or .webp file.", panel=_OUTPUT)
    ] = None,
    format: Annotated[str | None, _option("--format", help="png, jpg or webp.", panel=_OUTPUT)] = None,
    trace: Annotated[
        Path | None, _option("--trace", help="Write each step's decisions as JSON Lines.", panel=_OUTPUT)
    ] = None,
    as_json: Annotated[
        bool, _option("--json", help="Print an object instead of the picture's path.", panel=_OUTPUT)
    ] = False,
    quiet: Annotated[bool, _option("--quiet", "-q", help="Say nothing but errors.", panel=_OUTPUT)] = False,
    verbose: Annotated[
        bool, _option("--verbose", "-v", help="All steps, and what the libraries say.", panel=_OUTPUT)
    ] = False,
    dry_run: Annotated[
        bool, _option("--dry-run", help="Show every setting and where it came from.", panel=_OUTPUT)
    ] = False,
) -> None:
    """Make a picture with a Flux model, and show which blocks H2-Cache ran at each step.

    Example: h2gen "a cat" --tau1 0.08 --tau2 0.2
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("prompt", "prompt_option", "trace", "as_json", "quiet", "verbose", "dry_run")
    }
    # Imported here and below, and not above: this module is loaded for every --help.
    from h2gen.cli.console import make_console, say
    from h2gen.run.plan import make_plan

    console = make_console()
    console.quiet = quiet
    words = _prompt(prompt, prompt_option)
    plan = make_plan(words, given)
    if prompt and prompt in words and " " not in prompt and did_you_mean(prompt, _COMMANDS) != ".":
        say(console, f"Painting {prompt!r}{did_you_mean(prompt, _COMMANDS)}", "yellow")
    if dry_run:
        _tell(plan, console)
        _show_plan(plan, as_json)
        return
    _make(plan, console, trace, as_json, verbose)


def _prompt(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None:
        raise SettingError("There are two prompts, one as an argument and one with --prompt; give one.")
    words = argument if option is None else option
    if words is None:
        raise SettingError("There is no prompt; say what to paint, such as: h2gen 'a cat'")
    if words == "-":
        try:
            words = sys.stdin.buffer.read(4 * LONGEST_PROMPT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SettingError("The prompt on stdin is not UTF-8 text.") from error
    words = " ".join(words.split())
    if not words.isascii() and any("\ud800" <= char <= "\udfff" for char in words):
        raise SettingError("The prompt is not UTF-8 text.")
    if not words:
        raise SettingError("The prompt is empty; say what to paint, such as 'a cat'.")
    if len(words) > LONGEST_PROMPT:
        raise SettingError(f"The prompt has more than {LONGEST_PROMPT} characters; shorten it.")
    return words


def _tell(plan: Plan, console: Console) -> None:
    from h2gen.cli.console import say

    for notice in plan.notices:
        say(console, notice, "dim")


def _show_plan(plan: Plan, as_json: bool) -> None:
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
    table.add_row("prompt", Text(printable(plan.settings.prompt)), "option")
    for name, item in plan.resolved.items():
        table.add_row(name.replace("_", "-"), Text(printable(str(item.value))), Text(item.source))
    Console(highlight=False, markup=False, emoji=False).print(table)


def _make(plan: Plan, console: Console, trace: Path | None, as_json: bool, verbose: bool) -> None:
    """Check where things go, load, watch, run, save."""
    from h2gen.cli.console import complain
    from h2gen.cli.live import steps_table
    from h2gen.run.save import save, target_of
    from h2gen.run.trace_file import TraceFile

    target = target_of(plan.out, plan.format)
    if trace is not None:
        TraceFile.check(trace)
    session = _load(plan, console, verbose)
    _tell(plan, console)
    where = {
        "model": plan.checkpoint.name,
        "device": str(session.device),
        "dtype": str(session.dtype).removeprefix("torch."),
    }
    file = None if trace is None else TraceFile(trace, {**plan.settings.to_json(), **where})
    summary: Summary | None = None
    try:
        with _stoppable(session, console):
            result = _watch(session, plan, console, None if file is None else file.on_step)
        summary = None if result.trace is None else result.trace.summary
    finally:
        if file is not None:
            file.close(summary)
    path = save(result.image, target, plan.settings.prompt, plan.settings.seed)
    if file is not None and file.error is not None:
        complain(f"The trace {str(trace)!r} is not complete: {file.error}. The picture is.")
    if verbose and result.trace is not None and not console.is_terminal:
        table = steps_table(result.trace.steps, plan.settings.cache, 100, contexts=plan.settings.cfg > 1)
        console.print(table, width=100, crop=False)  # a pipe has no width to keep to
    _report(result, path, console)
    if as_json:
        made = {
            "path": str(path),
            **result.settings.to_json(),
            **where,
            "seconds": result.seconds,
            "uncached": result.uncached,
            "cache": None if summary is None else summary.to_json(),
        }
        print(json.dumps(made))
    elif console.quiet or not (console.is_terminal and sys.stdout.isatty()):
        print(path)  # whoever sits at the terminal has just read it


def _load(plan: Plan, console: Console, verbose: bool) -> Session:
    from rich.text import Text

    from h2gen.cli.console import route_warnings

    waiting: AbstractContextManager[Any] = nullcontext()
    if console.is_terminal:
        waiting = console.status(Text(f"Loading {printable(plan.checkpoint.name)}"))
    with waiting:
        # Only now: these load torch and diffusers, which takes seconds.
        from h2gen.run.session import open_session

        route_warnings(console, verbose)
        return open_session(plan.checkpoint, device=plan.device, dtype=plan.dtype, offload=plan.offload)


def _watch(session: Session, plan: Plan, console: Console, on_step: Callable[[StepRecord], None] | None) -> Result:
    """Run with whoever wants to watch: the live table, the trace file, both or nobody."""
    from rich.text import Text

    from h2gen.cli.live import LiveTable

    settings = plan.settings
    if console.quiet or not console.is_terminal:
        return session.run(settings, on_step=on_step)
    passes = 2 if settings.cfg > 1 else 1
    cache = settings.cache
    thresholds = f"tau1 {cache.tau1:g}, tau2 {cache.tau2:g}" if cache.enabled else "no cache"
    guidance = f"cfg {settings.cfg:g}" if passes == 2 else f"guidance {settings.guidance:g}"
    facts = (
        f"{plan.checkpoint.name} · {settings.width}x{settings.height} · {settings.steps} steps · "
        f"seed {settings.seed} · {guidance} · {thresholds} · "
        f"{session.device} {str(session.dtype).removeprefix('torch.')}"
    )
    heading = [
        Text(printable(settings.prompt), style="bold", no_wrap=True, overflow="ellipsis"),
        Text(printable(facts), style="dim", no_wrap=True, overflow="ellipsis"),
    ]
    with LiveTable(console, heading, cache, settings.steps * passes, contexts=passes == 2) as table:

        def both(record: StepRecord) -> None:
            table.on_step(record)
            if on_step is not None:
                on_step(record)

        return session.run(settings, on_step=both)


@contextmanager
def _stoppable(session: Session, console: Console) -> Iterator[None]:
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


def _report(result: Result, path: Path, console: Console) -> None:
    """The last line, and advice where the cache did nothing."""
    from h2gen.cache.gate import Outcome
    from h2gen.cache.trace import suggest_thresholds
    from h2gen.cli.console import complain, say
    from h2gen.cli.live import counts

    if result.uncached:
        complain("The picture came out as NaN with the cache; it was made once more without it.")
    line = f"{path}  seed {result.settings.seed}, {result.seconds:.2f} s"
    if result.trace is None or not result.settings.cache.enabled:
        say(console, line, "bold")
        return
    summary, steps = result.trace.summary, result.trace.steps
    passes = any(step.context != steps[0].context for step in steps)
    say(console, f"{line}, {counts(summary, passes)}", "bold")
    if summary.full < summary.steps:
        return
    tau1, tau2 = suggest_thresholds(steps)
    options = [f"--tau{n} {tau:g}" for n, tau in ((1, tau1), (2, tau2)) if tau is not None]
    if options:
        advice = f"; {' '.join(options)} would have, by the changes that it saw"
    elif any(step.structure.outcome is Outcome.GUARDED for step in steps):
        advice = ": its guards kept every step full; take more steps, or fewer --warmup-steps and --final-steps"
    else:
        advice = ": there were too few steps"
    say(console, f"The cache reused nothing{advice}.", "yellow")
