"""``h2gen bench``: what a step costs by its outcome, and what the checks cost."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from h2gen.errors import SettingError
from h2gen.words import printable


def bench(
    model: Annotated[str, typer.Option("--model", "-m", help="A FLUX.1 model to measure.")] = "tiny",
    random: Annotated[
        bool, typer.Option("--random", help="Measure a FLUX.1 transformer of 350 M random weights instead.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Image tokens; 1024 with --random, the model's own otherwise.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", "-s", help="Steps a run.", min=5, max=1000)] = 8,
    repeat: Annotated[int, typer.Option("--repeat", help="Runs of each kind.", min=1, max=1000)] = 3,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bf16, fp16, fp32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print an object instead of tables.")] = False,
) -> None:
    """Time a step by its outcome, the checks, and the speed-up against its estimate. No picture is made."""
    if tokens is not None and not 1 <= tokens <= 65536:
        raise SettingError(f"tokens is {tokens}; give a whole number from 1 to 65536.")
    from rich.console import Console
    from rich.table import Table

    from h2gen.cli.console import make_console, say

    console = make_console()
    say(console, "Loading and measuring; leave the machine alone meanwhile.", "dim")

    from h2gen.models import choose_device, choose_dtype, resolve
    from h2gen.run.session import open_session
    from h2gen.study.bench import measure, random_transformer

    if random:
        where = choose_device(device)
        transformer = random_transformer(where, choose_dtype(dtype, where))
        name, image_tokens, text_tokens = "random weights", tokens or 1024, 128
    else:
        checkpoint = resolve(model)
        defaults = checkpoint.defaults
        transformer = open_session(checkpoint, device=device, dtype=dtype).pipe.transformer
        if type(transformer).__name__ != "FluxTransformer2DModel":
            raise SettingError(f"{model!r} is not a FLUX.1 model; bench measures those.")
        name, text_tokens = model, defaults.max_sequence_length
        image_tokens = tokens or defaults.width * defaults.height // defaults.size_multiple**2
    report = measure(transformer, image_tokens=image_tokens, text_tokens=text_tokens, steps=steps, repeats=repeat)
    if as_json:
        print(json.dumps(report.to_json()))
        return

    out = Console(highlight=False, markup=False, emoji=False)
    out.print(
        f"{printable(name)}: {report.parameters / 1e6:.0f} M parameters, {report.blocks} blocks, "
        f"{report.image_tokens} + {report.text_tokens} tokens, {report.device} {report.dtype}; "
        f"medians of {repeat} runs of {steps} steps"
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("step")
    for title in ("ms", "of plain"):
        table.add_column(title, justify="right")
    for word, seconds in (
        ("plain, no cache", report.plain),
        ("full, checked", report.full),
        ("detail reused", report.detail_reused),
        ("all reused", report.all_reused),
        ("both checks alone", report.checks),
    ):
        table.add_row(word, f"{seconds * 1000:.2f}", f"{seconds / report.plain:.2%}")
    out.print(table)
    out.print(
        f"One full step of four, the others all reused: {report.measured_speedup:.2f}x measured, "
        f"{report.estimated_speedup:.2f}x estimated from the blocks run ({report.kept:.0%} of it)."
    )
