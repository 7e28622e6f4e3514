"""``h2gen compare PROMPT``: what the cache gains and costs, compared with simply using fewer steps."""

from __future__ import annotations

from typing import Annotated

import typer

from h2gen.cli import options


@options.takes_options("compare")
def compare(
    given: options.Given,
    prompt: Annotated[str | None, typer.Argument(help="What to paint.", metavar="PROMPT")] = None,
    prompts: options.Prompts = None,
    prompt_key: options.PromptKey = None,
    limit: Annotated[
        int | None, options.option("--limit", help="The first N pictures only.", panel=options.MEASURING)
    ] = None,
    tau1: Annotated[
        str | None, options.option("--tau1", help="One threshold or several: 0.05,0.1,0.15.", panel=options.MEASURING)
    ] = None,
    tau2: Annotated[
        str | None,
        options.option("--tau2", help="One threshold or several; a grid with --tau1.", panel=options.MEASURING),
    ] = None,
    tolerance: Annotated[
        str | None, options.option("--tolerance", help="One tolerance or several.", panel=options.MEASURING)
    ] = None,
    repeat: Annotated[
        int | None,
        options.option(
            "--repeat", help="Timed runs per picture; default: 2, and a 3rd if they differ.", panel=options.MEASURING
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        options.option("--metrics", help="psnr,ssim,lpips,clip-iqa,clip-score, or all.", panel=options.MEASURING),
    ] = None,
    clip_model: Annotated[
        str | None, options.option("--clip-model", help="A CLIP model's folder or hub id.", panel=options.MEASURING)
    ] = None,
    fewer: Annotated[
        str | None,
        options.option("--fewer", help="Also uncached runs of N steps: 20,10.", panel=options.MEASURING),
    ] = None,
    against: Annotated[
        str | None,
        options.option("--against", help="Other caches at equal cost: fb,mag,taylor,sea,...", panel=options.MEASURING),
    ] = None,
    truth: Annotated[
        bool, options.option("--truth", help="Also compare with 400 uncached steps.", panel=options.MEASURING)
    ] = False,
    report: options.Report = None,
    save_preset: Annotated[
        str | None,
        options.option("--save-preset", help="Save the row as a preset.", panel=options.MEASURING, metavar="NAME"),
    ] = None,
    row: Annotated[
        int | None,
        options.option("--row", help="Row to choose; the recommended one if omitted.", panel=options.MEASURING),
    ] = None,
    as_json: bool = False,
    strict: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    dry_run: bool = False,
) -> None:
    """Compare cached pictures or videos with uncached ones and with simply using fewer steps.

    Writes the first prompt's results side by side (NAME-compare.png or .mp4), the decisions at each step
    (NAME-decisions.svg) and, for more than four methods, a chart (NAME-methods.svg) to --out, or to the folder of the
    --report.

    Example: h2gen compare "a cat" --tau1 0.05,0.1,0.15 --tau2 0.1,0.2 --report cat
    """
    # Imported here, not above: this module is loaded for every --help.
    from h2gen.cli.console import make_console, route_warnings, say, stdout
    from h2gen.cli.views.request import loading_of, show_notices, show_request
    from h2gen.evaluation.compare import prepare_comparison
    from h2gen.evaluation.options import CompareOptions

    prompt = None if prompt is None else options.without_options(prompt, "compare")
    console = make_console()
    console.quiet = quiet
    wanted = CompareOptions(
        limit=limit,
        repeat=repeat,
        metrics=metrics,
        clip_model=clip_model,
        fewer=fewer,
        against=against,
        truth=truth,
        report=report,
        images=True,
        save_preset=save_preset,
        row=row,
    )
    prepared = prepare_comparison(
        prompt,
        prompts=prompts,
        prompt_key=prompt_key,
        tau1=tau1,
        tau2=tau2,
        tolerance=tolerance,
        options=wanted,
        strict=strict,
        **given,
    )
    show_notices(prepared.request.notices, console)
    if dry_run:
        show_notices(loading_of(prepared.request), console)
        seeds = [case.seed for case in prepared.cases]
        shown = None if prompt is None else (prompt, "argument")
        source = "prompt" if given["seed"] is None else "option"
        from rich.text import Text

        more = {"estimate": prepared.effort.to_json()}
        show_request(prepared.request, seeds, as_json, prompt=shown, seed_source=source, whole=verbose, more=more)
        if not as_json:
            stdout().print(Text(f"\n{prepared.effort}"))
        return
    say(console, str(prepared.effort), "dim")
    from h2gen.cli.views.compare import CompareView

    route_warnings(console, verbose)
    with CompareView(console, as_json) as view:
        prepared.run(view)
