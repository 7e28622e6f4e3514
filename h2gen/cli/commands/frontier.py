"""``h2gen frontier``: caches and fewer steps ranked at equal compute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from h2gen.cli import options


@options.takes_options("frontier")
def frontier(
    given: options.Given,
    prompts: options.Prompts = None,
    prompt_key: options.PromptKey = None,
    limit: Annotated[int, options.option("--limit", help="The first N prompts.", panel=options.MEASURING)] = 48,
    budgets: Annotated[
        str | None, options.option("--budgets", help="Shares of the blocks: 0.5,0.33,0.2.", panel=options.MEASURING)
    ] = None,
    only: Annotated[
        str | None,
        options.option("--only", help="Measure only some of own,paper,steps,peers.", panel=options.MEASURING),
    ] = None,
    against: Annotated[
        str | None,
        options.option(
            "--against", help="Other caches: fb,taylor,mag,dbcache,...; '' for none.", panel=options.MEASURING
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        options.option(
            "--profile",
            help="Profile to rank; default: the one that fits.",
            panel=options.MEASURING,
            metavar="FILE",
        ),
    ] = None,
    log: Annotated[
        Path | None,
        options.option(
            "--log",
            help="File that records the measurements; default: in your data folder.",
            panel=options.MEASURING,
            metavar="FILE",
        ),
    ] = None,
    report: options.Report = None,
    as_json: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    dry_run: bool = False,
) -> None:
    """Rank caches and fewer steps at equal compute. If interrupted, the same command continues.

    Example: h2gen frontier --steps 50 --cfg 1 --report frontier
    """
    # Imported here, not above: this module is loaded for every --help.
    from h2gen.cli.console import make_console, route_warnings, say, stdout
    from h2gen.cli.views.request import loading_of, show_notices, show_request
    from h2gen.evaluation.frontier import FrontierOptions, prepare_frontier
    from h2gen.evaluation.tune.options import parse_budgets

    console = make_console()
    console.quiet = quiet
    shares = None if budgets is None else parse_budgets(budgets)
    wanted = FrontierOptions(limit, shares, only, against, profile, log, report)
    prepared = prepare_frontier(prompts=prompts, prompt_key=prompt_key, options=wanted, **given)
    show_notices(prepared.request.notices, console)
    if dry_run:
        show_notices(loading_of(prepared.request), console)
        seeds = [case.seed for case in prepared.cases]
        from rich.text import Text

        show_request(
            prepared.request,
            seeds,
            as_json,
            seed_source="prompt",
            whole=verbose,
            more={"estimate": prepared.estimate.to_json()},
        )
        if not as_json:
            stdout().print(Text(f"\n{prepared.estimate}"))
        return
    from h2gen.cli.views.frontier import FrontierView

    route_warnings(console, verbose)
    say(console, str(prepared.estimate), "dim")
    with FrontierView(console, as_json, prepared.estimate) as view:
        prepared.run(view)
