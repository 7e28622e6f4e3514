"""``h2gen compare PROMPT``: what the cache gains and what it costs, beside what plain fewer steps would give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from h2gen.cli import options
from h2gen.errors import SettingError

if TYPE_CHECKING:
    from h2gen.batches.prompts import Reading
    from h2gen.evaluation.peers import Peer
    from h2gen.evaluation.results import Comparison, MethodResult


def compare(
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
        int, options.option("--repeat", help="Timed runs of each picture (3).", panel=options.MEASURING)
    ] = 3,
    metrics: Annotated[
        str | None,
        options.option("--metrics", help="psnr,ssim,lpips,clip-iqa,clip-score, or all.", panel=options.MEASURING),
    ] = None,
    clip_model: Annotated[
        str | None, options.option("--clip-model", help="A CLIP's folder or hub id.", panel=options.MEASURING)
    ] = None,
    fewer: Annotated[
        str | None, options.option("--fewer", help="Also plain runs of so many steps: 20,10.", panel=options.MEASURING)
    ] = None,
    against: Annotated[
        str | None,
        options.option("--against", help="Other caches at equal cost: fb,mag,taylor,sea,...", panel=options.MEASURING),
    ] = None,
    truth: Annotated[
        bool, options.option("--truth", help="Also measure against 400 steps uncached.", panel=options.MEASURING)
    ] = False,
    report: options.Report = None,
    save_preset: Annotated[
        str | None,
        options.option("--save-preset", help="Save a row as a preset.", panel=options.MEASURING, metavar="NAME"),
    ] = None,
    row: Annotated[
        int | None, options.option("--row", help="Which row; else the recommended one.", panel=options.MEASURING)
    ] = None,
    seed: options.Seeds = None,
    count: options.Count = None,
    size: options.Size = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    cfg: options.Cfg = None,
    negative: options.Negative = None,
    max_sequence_length: options.MaxSequenceLength = None,
    preset: options.Preset = None,
    warmup_steps: options.WarmupSteps = None,
    final_steps: options.FinalSteps = None,
    max_consecutive: options.MaxConsecutive = None,
    forecast: options.Forecast = None,
    plan: options.Plan = None,
    budget: options.Budget = None,
    hierarchy: options.Hierarchy = None,
    max_detail_age: options.MaxDetailAge = None,
    pfs: options.Pfs = None,
    model: options.Model = None,
    base: options.Base = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offload: options.Offload = None,
    out: options.OutFolder = None,
    as_json: options.FiguresAsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Put cached pictures beside uncached ones and beside plain fewer steps that take as long.

    Example: h2gen compare "a cat" --tau1 0.05,0.1,0.15 --tau2 0.1,0.2 --report cat
    """
    given = options.settings_in({name: value for name, value in locals().items() if name not in ("tau1", "tau2")})
    # Imported here, and not above: this module is loaded for every --help.
    from h2gen.batches.jobs import Jobs
    from h2gen.cli.console import make_console, say
    from h2gen.cli.evaluating import check_report, conduct, show, write_pictures
    from h2gen.cli.render import show_plan, tell
    from h2gen.evaluation.cases import cases_of
    from h2gen.evaluation.threshold_grid import grid, recommended, thresholds
    from h2gen.output.save import target_of
    from h2gen.settings import presets

    console = make_console()
    console.quiet = quiet
    first = {
        name: None if text is None else thresholds(name, text)[0]
        for name, text in (("tau1", tau1), ("tau2", tau2), ("tolerance", tolerance))
    }
    jobs = Jobs(_reading(prompt, prompts, prompt_key), {**given, **first})
    target = target_of(jobs.plan.out, "png")
    if target.stem is not None:
        raise SettingError(f"out is {jobs.plan.out!r}; a comparison needs a folder for its pictures.")
    for option, value in (("limit", limit), ("repeat", repeat)):
        if value is not None and not 1 <= value <= 100_000:
            raise SettingError(f"{option} is {value}; give a whole number from 1 on.")
    check_report(report)
    if save_preset is not None:
        presets.check_new(save_preset)
    cases, settings = cases_of(jobs, limit)
    caches = grid(settings.cache, tau1, tau2, tolerance)
    if not any(cache.enabled for cache in caches):
        raise SettingError("The cache is off; give --tau1 and --tau2, or a --preset, to compare it with.")
    if row is not None and not 1 <= row <= len(caches):
        raise SettingError(f"row is {row}; there are {len(caches)}, counted from 1.")
    counts = _counts(fewer, settings.steps)
    peers = _peers(against)
    from h2gen.evaluation.metrics import choose_metrics
    from h2gen.evaluation.options import CompareOptions
    from h2gen.evaluation.report import write_report

    measured = choose_metrics(metrics, clip_model=clip_model)
    if not measured.infos:
        raise SettingError(" ".join(measured.notices))
    if dry_run:
        tell(jobs.plan, console)
        show_plan(jobs.plan, [case.seed for case in cases], as_json)
        return
    wishes = CompareOptions(caches, fewer=counts, peers=peers, truth=truth, repeat=repeat)
    comparing, identity, ended = conduct(
        jobs.plan, cases, settings, measured, wishes, console, folder=report, verbose=verbose
    )
    choose = recommended if row is None else lambda results, _metrics: _row(results, row)
    comparison = comparing.result(choose, identity)
    show(comparison, console, as_json)  # first of all: whatever cannot be written, the figures are there
    written = [] if report is None else [write_report(comparison, report, report)]
    written += write_pictures(comparison, comparing.pictures, target.folder if report is None else report)
    if save_preset is not None:
        written.append(_save_preset(save_preset, comparison))
    for path in written:
        say(console, str(path), "bold")
    if ended is not None:
        raise ended


def _reading(prompt: str | None, files: Sequence[str] | None, key: str | None) -> Reading:
    """Entries of the files, or of the one prompt."""
    from h2gen.batches.prompts import Entry, Reading, read_prompts
    from h2gen.settings.values import clean_prompt

    if (prompt is None) == (not files):
        raise SettingError("Give a prompt, or --prompts with a file of them.")
    if files:
        return read_prompts(files, key)
    return Reading([Entry(clean_prompt(prompt or ""), "the prompt", {}, {})])


def _counts(text: str | None, steps: int) -> list[int]:
    """Numbers of steps such as ``20,10``."""
    try:
        counts = [] if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingError(f"fewer is {text!r}; give numbers of steps such as 20,10.") from error
    for count in counts:
        if not 1 <= count < steps:
            raise SettingError(f"fewer is {text!r}; give numbers of steps from 1 to {steps - 1}.")
    return counts


def _peers(names: str | None) -> Sequence[Peer]:
    if names is None:
        return ()
    from h2gen.evaluation.peers import choose_peers

    return choose_peers(names)


def _row(results: Sequence[MethodResult], row: int) -> str:
    """The name of one of H2-Cache's rows, by its number in the table."""
    ours = [result.name for result in results if result.kind == "h2"]
    return ours[min(row, len(ours)) - 1] if ours else results[0].name


def _save_preset(name: str, comparison: Comparison) -> Path:
    """Write the chosen row as a preset of the user's own."""
    from h2gen.evaluation.threshold_grid import cache_of, figures_of
    from h2gen.settings import presets

    chosen = comparison.method(comparison.chosen)
    description = f"Chosen by comparing, for {comparison.model['name']} at {comparison.settings['steps']} steps."
    return presets.write_preset(name, cache_of(chosen), description, figures_of(chosen, comparison))
