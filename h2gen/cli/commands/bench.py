"""``h2gen bench``: what a step costs by its outcome, and what the checks cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from h2gen.errors import SettingError
from h2gen.wording import printable


def bench(
    model: Annotated[str, typer.Option("--model", "-m", help="A FLUX.1 model to measure.")] = "tiny",
    random: Annotated[
        bool, typer.Option("--random", help="Measure a FLUX.1 transformer of 350 M random weights instead.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Image tokens; 1024 with --random, the model's own otherwise.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "-s", help="Steps a run: 8, or 100 with --paper.", min=5, max=1000)
    ] = None,
    repeat: Annotated[
        int | None, typer.Option("--repeat", help="Runs of each kind: 3, or 1 with --paper.", min=1, max=1000)
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bf16, fp16, fp32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print an object instead of tables.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help="Make the paper's table instead, from --prompts.")] = False,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompts", help="Of --paper: .txt, .yaml or .jsonl.", metavar="FILE")
    ] = None,
    prompt_key: Annotated[str | None, typer.Option("--prompt-key", help="The key of the prompt in .jsonl.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Of --paper: the first N prompts only.", min=1)] = None,
    size: Annotated[str, typer.Option("--size", help="Of --paper.")] = "1024x1024",
    offload: Annotated[str, typer.Option("--offload", help="none, model, group, sequential, auto.")] = "none",
    report: Annotated[
        Path | None, typer.Option("--report", help="Of --paper: write a page into this folder.", metavar="DIR")
    ] = None,
) -> None:
    """Time a step by its outcome, the checks, and the speed-up against its estimate. No picture is made.

    With --paper: run the paper's protocol (seed 0, 100 steps, 1024x1024; no cache, block cache, TeaCache and H2-Cache
    at 0.15 and 0.22), and beside it plain runs of fewer steps.
    """
    if paper:
        from h2gen.cli.paper_table import paper_table

        given = {"model": model, "steps": steps or 100, "size": size, "device": device, "dtype": dtype}
        reading = (prompts or [], prompt_key)
        paper_table({**given, "offload": offload}, reading, limit, repeat or 1, report, as_json)
        return
    for name, value in (("prompts", prompts), ("limit", limit), ("report", report)):
        if value:
            raise SettingError(f"--{name} goes with --paper; give that too.")
    steps, repeat = steps or 8, repeat or 3
    if tokens is not None and not 1 <= tokens <= 65536:
        raise SettingError(f"tokens is {tokens}; give a whole number from 1 to 65536.")
    from rich.console import Console
    from rich.table import Table

    from h2gen.cli.console import make_console, say

    console = make_console()
    say(console, "Loading and measuring; leave the machine alone meanwhile.", "dim")

    from h2gen.evaluation.bench import measure, random_transformer
    from h2gen.generation.session import open_session
    from h2gen.models import choose_device, choose_dtype, resolve

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
    measured = measure(transformer, image_tokens=image_tokens, text_tokens=text_tokens, steps=steps, repeats=repeat)
    if as_json:
        print(json.dumps(measured.to_json()))
        return

    out = Console(highlight=False, markup=False, emoji=False)
    out.print(
        f"{printable(name)}: {measured.parameters / 1e6:.0f} M parameters, {measured.blocks} blocks, "
        f"{measured.image_tokens} + {measured.text_tokens} tokens, {measured.device} {measured.dtype}; "
        f"medians of {repeat} runs of {steps} steps"
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("step")
    for title in ("ms", "of plain"):
        table.add_column(title, justify="right")
    for word, seconds in (
        ("plain, no cache", measured.plain),
        ("full, checked", measured.full),
        ("detail reused", measured.detail_reused),
        ("all reused", measured.all_reused),
        ("skipped", measured.skipped),
        ("both checks alone", measured.checks),
    ):
        table.add_row(word, f"{seconds * 1000:.2f}", f"{seconds / measured.plain:.2%}")
    out.print(table)
    out.print(
        f"One full step of four, the others all reused: {measured.measured_speedup:.2f}x measured, "
        f"{measured.estimated_speedup:.2f}x estimated from the blocks run ({measured.kept:.0%} of it)."
    )
