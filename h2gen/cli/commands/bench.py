"""``h2gen bench``: the time of each kind of step and of the checks; with --paper, the paper's table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from h2gen.cli import options
from h2gen.cli.options import MEASURING, option
from h2gen.errors import SettingError
from h2gen.wording import plural, printable

if TYPE_CHECKING:
    from h2gen.evaluation.bench import BenchReport
    from h2gen.evaluation.ways import WaysReport


@options.takes_options("bench")
def bench(
    random: Annotated[
        bool, option("--random", help="Measure a FLUX.1 transformer of 350 M random weights instead.", panel=MEASURING)
    ] = False,
    tokens: Annotated[
        int | None,
        option("--tokens", help="Image tokens; 1024 with --random, else the model's own.", panel=MEASURING),
    ] = None,
    steps: Annotated[
        int | None,
        option(
            "--steps",
            "-s",
            help="Steps per run, at least 5; 8 by default, 100 with --paper.",
            panel=MEASURING,
            min=5,
            max=1000,
        ),
    ] = None,
    repeat: Annotated[
        int | None,
        option(
            "--repeat",
            help="Runs of each kind; 3 by default, 1 with --paper, 20 steps with --ways.",
            panel=MEASURING,
            min=1,
            max=1000,
        ),
    ] = None,
    ways: Annotated[
        str | None,
        option(
            "--ways",
            help="Compare a full step in these ways with plain diffusers instead: off, plan, checks, compile, or a "
            "quantization such as int8; + joins several.",
            panel=MEASURING,
            metavar="WAY,WAY",
        ),
    ] = None,
    paper: Annotated[
        bool, option("--paper", help="Make the paper's table instead, from --prompts.", panel=MEASURING)
    ] = False,
    prompts: options.Prompts = None,
    prompt_key: options.PromptKey = None,
    limit: Annotated[
        int | None, option("--limit", help="With --paper: the first N prompts only.", panel=MEASURING, min=1)
    ] = None,
    size: Annotated[
        str | None, option("--size", help="With --paper: size of the pictures, 1024x1024 by default.", panel=MEASURING)
    ] = None,
    report: options.Report = None,
    model: str = "tiny",
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    offload: str = "none",
    as_json: bool = False,
) -> None:
    """Benchmark each kind of step and the overall speed-up. No picture is made.

    With --ways: compare full steps with those of plain diffusers, in turn: after the cache was removed, with its
    checks, compiled or quantized.

    With --paper: run the paper's protocol (seed 0, 100 steps, 1024x1024; no cache, block cache, TeaCache and H2-Cache
    at 0.15 and 0.22), plus uncached runs of fewer steps.
    """
    if quantize != "none" and (paper or ways is not None):
        instead = "leave it out" if paper else f"name it as a way: --ways {quantize}"
        raise SettingError(f"--quantize cannot be used with --{'paper' if paper else 'ways'}; {instead}.")
    if paper:
        _refuse("cannot be used with --paper; leave out one of them.", random=random or None, tokens=tokens, ways=ways)
        _paper_table(
            prompts,
            as_json,
            prompt_key=prompt_key,
            limit=limit,
            repeat=repeat or 1,
            report=report,
            model=model,
            steps=steps or 100,
            size=size or "1024x1024",
            device=device,
            dtype=dtype,
            offload=offload,
        )
        return
    _refuse(
        "is only for --paper; give both, or neither.",
        prompts=prompts or None,
        prompt_key=prompt_key,
        limit=limit,
        size=size,
        report=report,
        offload=None if offload == "none" else offload,
    )
    if ways is not None:
        if steps is not None:
            raise SettingError("--steps cannot be used with --ways, which times single steps; use --repeat.")
        from h2gen.evaluation.ways import usable_ways

        parsed = usable_ways(ways, device, dtype)
    from h2gen.cli.console import make_console, say

    say(make_console(), "Loading and measuring; do not use the machine meanwhile.", "dim")
    subject: dict[str, Any] = {"random": random, "tokens": tokens, "device": device, "dtype": dtype}
    name = "random weights" if random else model
    name += "" if quantize == "none" else f" in {quantize}"
    from h2gen.evaluation import bench as benchmark

    if ways is not None:
        from h2gen.evaluation.ways import compare_ways

        compared = compare_ways(benchmark.find_subject(model, **subject), parsed, repeat or 20)
        if as_json:
            print(json.dumps(compared.to_json()))
        else:
            _print_ways(name, compared)
        return
    measured = benchmark.bench(model, steps=steps or 8, repeat=repeat or 3, quantize=quantize, **subject)
    if as_json:
        print(json.dumps(measured.to_json()))
    else:
        _print_report(name, measured)


def _refuse(why: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise SettingError(f"--{name.replace('_', '-')} {why}")


def _paper_table(prompts: list[str] | None, as_json: bool, **given: Any) -> None:
    from h2gen.cli.console import make_console, route_warnings
    from h2gen.cli.views.compare import CompareView
    from h2gen.evaluation.paper_table import METRICS, paper_table

    console = make_console()
    route_warnings(console, verbose=False)
    with CompareView(console, as_json, lead=METRICS.split(",")[0]) as view:
        paper_table(prompts, observer=view, **given)


def _subject(name: str, measured: BenchReport | WaysReport) -> str:
    return (
        f"{printable(name)}: {measured.parameters / 1e6:.0f} M parameters, {measured.blocks:g} blocks, "
        f"{measured.image_tokens} + {measured.text_tokens} tokens, {measured.device} {measured.dtype}"
    )


def _print_ways(name: str, compared: WaysReport) -> None:
    from rich.table import Table

    from h2gen.cli.console import stdout

    out = stdout()
    out.print(f"{_subject(name, compared)}; {plural(compared.rounds, 'step')} of each, in turn")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("full step")
    for title in ("ms", "of plain", "95 % interval", "output differs", "first step"):
        table.add_column(title, justify="right")
    for each in compared.ways:
        plain = each.way == "plain"
        table.add_row(
            "plain diffusers" if plain else each.way,
            f"{each.seconds * 1000:.2f}",
            "" if plain else f"{each.ratio:.2%}",
            "" if plain or each.low is None else f"{each.low:.2%} to {each.high:.2%}",
            "" if plain else f"{each.difference:.2g}" if each.difference else "no",
            f"{each.begin:.1f} s",
        )
    out.print(table)
    out.print("Shares are medians too: each step is compared with the plain one of its round.")


def _print_report(name: str, measured: BenchReport) -> None:
    from rich.table import Table

    from h2gen.cli.console import stdout

    out = stdout()
    runs = plural(measured.repeats, "run")
    medians = runs if measured.repeats == 1 else f"medians of {runs}"
    out.print(f"{_subject(name, measured)}; {medians} of {measured.steps} steps")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("step")
    for title in ("ms", "of uncached"):
        table.add_column(title, justify="right")
    for outcome, seconds in (
        ("uncached", measured.plain),
        ("full, with checks", measured.full),
        ("detail reused", measured.detail_reused),
        ("all reused", measured.all_reused),
        ("skipped", measured.skipped),
        ("both checks only", measured.checks),
    ):
        if seconds == seconds:  # NaN if a model has no such step
            table.add_row(outcome, f"{seconds * 1000:.2f}", f"{seconds / measured.plain:.2%}")
    out.print(table)
    out.print(
        f"One full step in four, all others reused: {measured.measured_speedup:.2f}x measured, "
        f"{measured.estimated_speedup:.2f}x estimated from the blocks that ran ({measured.kept:.0%} of the estimate)."
    )
    if measured.exact:
        out.print(
            f"{measured.exact:.3g} of the {measured.blocks:g} blocks run in the first step only: their result is the "
            "same at every step."
        )
