"""``h2gen replay PICTURE``: make a picture again from what it says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from h2gen.cli import options

if TYPE_CHECKING:
    from h2gen.cli.render import Renderer


def replay(
    picture: Annotated[Path, typer.Argument(help="A picture, or the .toml beside it.", metavar="PICTURE")],
    prompt: Annotated[
        str | None, options.option("--prompt", "-p", help="Another prompt.", panel=options.PICTURE)
    ] = None,
    seed: options.Seeds = None,
    count: options.Count = None,
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
    model: options.Model = None,
    base: options.Base = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offload: options.Offload = None,
    out: options.Out = None,
    format: options.Format = None,
    no_metadata: options.NoMetadata = False,
    sidecar: options.Sidecar = False,
    trace: options.TracePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Make a picture again: the same pixels on the same machine. Options change what they name."""
    given = options.settings_in(locals())
    from h2gen.cli.console import make_console, say
    from h2gen.cli.render import RenderOptions, produce, show_plan, tell
    from h2gen.output.metadata import read_metadata
    from h2gen.output.replay import layers_of, relabelled
    from h2gen.settings.resolve import request_from
    from h2gen.settings.seeds import choose_seeds
    from h2gen.settings.values import clean_prompt

    console = make_console()
    console.quiet = quiet
    found = read_metadata(picture)
    same = seed is None and count is None
    seeds = choose_seeds(str(found.settings.seed) if seed is None else seed, count)
    words = found.settings.prompt if prompt is None else clean_prompt(prompt)
    planned = request_from(words, layers_of(found, {**given, "seed": None if same else seeds[0]}))
    if given["preset"] is None and not given["no_cache"]:
        planned = replace(planned, resolved=relabelled(planned.resolved, found.preset))
    if dry_run:
        tell(planned, console)
        show_plan(planned, seeds, as_json, "option" if prompt is not None else "picture")
        return

    def differences(renderer: Renderer) -> None:
        for line in renderer.differences(found):
            say(console, line, "yellow")

    produce(
        planned,
        seeds,
        console,
        RenderOptions(trace, as_json, verbose, not no_metadata, sidecar),
        differences,
        tiled=found.tiled,
    )
