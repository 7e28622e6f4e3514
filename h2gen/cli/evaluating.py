"""Measuring in the terminal: what ``compare``, ``frontier``, ``tune`` and ``bench --paper`` share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.errors import OutputError, Stopped

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from h2gen.evaluation.compare import Comparing
    from h2gen.evaluation.contact_sheet import Panel
    from h2gen.evaluation.metrics import Metrics
    from h2gen.evaluation.options import CompareOptions
    from h2gen.evaluation.results import Case, Comparison, MethodResult
    from h2gen.generation.session import Session
    from h2gen.settings.resolve import Request
    from h2gen.settings.values import Settings


_FEW = 4
"""Methods whose table says as much as a chart would."""


def check_report(folder: Path | None) -> None:
    """Find out whether a report can be written there; none is wanted where there is no folder.

    Raises:
        OutputError: it is a file, holds something already, or cannot be written to.
    """
    from h2gen.output.save import check_folder

    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"The report {str(folder)!r} is a file; give a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"The folder {str(folder)!r} is not empty; give a new one for the report.")
    check_folder(folder)


def uncached(
    given: Mapping[str, Any], files: Sequence[str] | None, key: str | None, built_in: Sequence[Case], most: int
) -> tuple[Request, Sequence[Case]]:
    """The plan of the uncached pictures that everything is measured against, and the cases that they are of.

    Args:
        given: options, as in ``resolve_request``.
        files: prompt files; what they set holds for all of their prompts, or is refused.
        key: of the prompt in JSON Lines.
        built_in: the cases where there are no files.
        most: cases at most.

    Raises:
        UsageError: something cannot be used.
    """
    from dataclasses import replace

    from h2gen.batches.jobs import Jobs
    from h2gen.batches.prompts import read_prompts
    from h2gen.evaluation.cases import cases_of
    from h2gen.settings.resolve import resolve_request
    from h2gen.settings.values import Resolved

    given = {**given, "no_cache": True}
    if not files:
        return resolve_request("-", {**given, "seed": 0}), built_in[:most]
    jobs = Jobs(read_prompts(files, key), given)
    cases, settings = cases_of(jobs, most)
    theirs = {"size": f"{settings.width}x{settings.height}", **settings.to_json()}
    resolved = {
        name: Resolved(theirs[name], "prompt file")
        if name != "seed" and theirs.get(name, said.value) != said.value
        else said
        for name, said in jobs.plan.resolved.items()
    }
    return replace(jobs.plan, settings=settings, resolved=resolved), cases


def opened(plan: Request) -> tuple[Session, str]:
    """The plan's model, loaded, and its content hash: reading a whole checkpoint must not fall into what is timed."""
    # Only now: these load torch and diffusers, which takes seconds.
    from h2gen.generation.session import open_session
    from h2gen.models.content_hash import Identity
    from h2gen.models.translate_errors import translated

    identity = Identity(plan.checkpoint)
    session = open_session(plan.checkpoint, device=plan.device, dtype=plan.dtype, offload=plan.offload)
    with translated(plan.checkpoint):
        return session, identity.result()


def conduct(
    plan: Request,
    cases: Sequence[Case],
    settings: Settings,
    metrics: Metrics,
    wishes: CompareOptions,
    console: Console,
    *,
    folder: Path | None,
    verbose: bool,
) -> tuple[Comparing, str, Exception | None]:
    """Load the plan's model and compare.

    Returns:
        The comparison in the making, the model's content hash, and what ended it before its end, if anything did: with
        a case finished that is for the caller to raise, once its figures are shown.

    Raises:
        H2GenError: something failed before a case was finished.
        Stopped: it was stopped before that.
    """
    from h2gen.cli.console import route_warnings
    from h2gen.cli.render import stoppable, tell
    from h2gen.cli.views.compare import CompareView

    tell(plan, console)
    route_warnings(console, verbose)
    with CompareView(console, metrics.infos) as view:
        session, content_hash = opened(plan)
        from h2gen.evaluation.compare import Comparing

        comparing = Comparing(session, cases, settings, metrics, wishes, watcher=view, folder=folder)
        ended: Exception | None = None
        try:
            with stoppable(session, console):
                comparing.run()
        except KeyboardInterrupt:
            if not comparing.finished:
                raise Stopped("Stopped before a picture was compared by all methods.") from None
            ended = Stopped(
                f"Stopped; the figures are of {comparing.finished} of {len(cases)} pictures of each method."
            )
        except Exception as error:
            if not comparing.finished:
                raise
            ended = error
    return comparing, content_hash, ended


def show(comparison: Comparison, console: Console, as_json: bool, lead: str | None = None) -> None:
    """The table of methods and what it means on stdout, or the whole as JSON; notices on stderr. The metric named
    ``lead`` has the table's first columns."""
    from rich.console import Console
    from rich.text import Text

    from h2gen.cli.console import say
    from h2gen.cli.views.compare import comparison_table
    from h2gen.evaluation.report import finding
    from h2gen.wording import printable

    for notice in comparison.notices:
        say(console, notice, "yellow")
    if as_json:
        print(json.dumps(comparison.to_json(), allow_nan=False))
        return
    out = Console(highlight=False, markup=False, emoji=False)
    table, left_out = comparison_table(comparison, out.width, lead)
    out.print(table)
    better = "closer" if any(metric.fidelity for metric in comparison.metrics) else "better"
    out.print(Text(f"* No other row is both faster and {better}.", style="dim"))
    names = [metric.title for metric in left_out]
    names += ["what is measured against 400 steps"] if comparison.reference.truth_scores else []
    if names:
        out.print(Text(f"No room here for {' and '.join(names)}: see --json, or --report.", style="dim"))
    headline, sentences = finding(comparison)
    out.print()
    out.print(Text(f"{printable(headline)}.", style="bold"))
    out.print(Text(printable(" ".join(sentences))))


def write_pictures(comparison: Comparison, pictures: Mapping[str, Image.Image], folder: Path) -> list[Path]:
    """Write the first case's pictures side by side, its decisions as a chart, and of many methods a chart too.

    Args:
        comparison: what was found.
        pictures: of the first case, by the methods' names.
        folder: where to.

    Returns:
        The files' paths.

    Raises:
        RunError: they could not be written there; they are then in the temporary folder, and the message says so.
    """
    from h2gen.evaluation.charts import decisions_chart, pareto_chart
    from h2gen.evaluation.contact_sheet import contact, difference_panel
    from h2gen.evaluation.figures import first_fidelity
    from h2gen.evaluation.threshold_grid import cache_of
    from h2gen.output.save import encode, keep, slug

    chosen, plain = comparison.method(comparison.chosen), comparison.reference
    case = comparison.cases[0]
    stem = f"{slug(case.prompt)}-{case.seed}"
    above = [_panel(comparison, method, pictures[method.name]) for method in (plain, chosen)]
    above.append(difference_panel(pictures[plain.name], pictures[chosen.name]))
    others = [
        min(rivals, key=lambda method: abs(method.seconds.median - chosen.seconds.median))
        for kind in ("steps", "solver")
        if (rivals := [method for method in comparison.methods if method.kind == kind])
    ]
    below = [_panel(comparison, method, pictures[method.name]) for method in others]
    sheet = contact([above, below] if below else [above])
    paths = [keep(encode(sheet, "png"), folder, f"{stem}-compare", "png")]
    steps = chosen.shots[0].trace
    if steps:
        chart = decisions_chart(steps, cache_of(chosen), width=720.0)
        paths.append(keep(chart.encode(), folder, f"{stem}-decisions", "svg"))
    metric = first_fidelity(comparison)
    if metric is not None and len(comparison.methods) > _FEW:
        chart = pareto_chart(comparison, metric, width=720.0)
        paths.append(keep(chart.encode(), folder, f"{stem}-methods", "svg"))
    return paths


def _panel(comparison: Comparison, method: MethodResult, picture: Image.Image) -> Panel:
    """A picture with the figures that belong to it."""
    import statistics

    from h2gen.evaluation.contact_sheet import Panel
    from h2gen.evaluation.figures import percent, reading, seconds

    shot = method.shots[0]
    figures = [f"{seconds(statistics.median(shot.seconds))}, {percent(shot.share)} of the blocks"]
    if method.kind != "reference":
        close = [metric for metric in comparison.metrics if metric.fidelity and metric.name in shot.scores]
        figures.append(", ".join(f"{metric.title} {reading(metric, shot.scores[metric.name])}" for metric in close))
    return Panel(picture, method.label, figures)
