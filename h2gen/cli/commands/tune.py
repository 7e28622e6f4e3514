"""``h2gen tune``: find the best settings for each speed, and write them as a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from h2gen.cli import options


@options.takes_options("tune")
def tune(
    given: options.Given,
    prompts: options.Prompts = None,
    prompt_key: options.PromptKey = None,
    search: Annotated[
        int, options.option("--search", help="Number of prompts to search on.", panel=options.MEASURING)
    ] = 4,
    check: Annotated[
        int, options.option("--check", help="Number of other prompts to check on.", panel=options.MEASURING)
    ] = 12,
    budgets: Annotated[
        str | None, options.option("--budgets", help="Shares of the blocks: 0.5,0.33,0.2.", panel=options.MEASURING)
    ] = None,
    tries: Annotated[int, options.option("--tries", help="Variants tried per plan.", panel=options.MEASURING)] = 12,
    threshold_tries: Annotated[
        int,
        options.option(
            "--threshold-tries",
            help="Two-stage settings tried per budget; 0 skips that search.",
            panel=options.MEASURING,
        ),
    ] = 16,
    profile: Annotated[
        Path | None,
        options.option(
            "--profile",
            help="Profile to write; default: your data folder.",
            panel=options.MEASURING,
            metavar="FILE",
        ),
    ] = None,
    as_json: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    dry_run: bool = False,
) -> None:
    """Find the best settings for each speed, for --speedup and --fidelity. If interrupted, the same command continues.

    Example: h2gen tune --model dev --steps 50
    """
    # Imported here, not above: this module is loaded for every --help.
    from h2gen.cli.console import make_console, route_warnings, say, stdout
    from h2gen.cli.views.request import loading_of, show_notices, show_request
    from h2gen.evaluation.tune.options import BUDGETS, TuneOptions, parse_budgets
    from h2gen.evaluation.tune.tune import prepare_tuning

    console = make_console()
    console.quiet = quiet
    shares = BUDGETS if budgets is None else parse_budgets(budgets)
    wanted = TuneOptions(search, check, shares, tries, threshold_tries=threshold_tries, profile=profile)
    prepared = prepare_tuning(prompts=prompts, prompt_key=prompt_key, options=wanted, **given)
    show_notices(prepared.request.notices, console)
    if dry_run:
        show_notices(loading_of(prepared.request), console)
        seeds = [case.seed for case in (*prepared.searched, *prepared.checked)]
        from rich.text import Text

        effort = prepared.estimate
        show_request(
            prepared.request, seeds, as_json, seed_source="prompt", whole=verbose, more={"estimate": effort.to_json()}
        )
        if not as_json:
            stdout().print(Text(f"\n{effort}"))
        return
    from h2gen.cli.views.tune import TuneView

    route_warnings(console, verbose)
    with TuneView(console, as_json, wanted, prepared.request.settings.noun) as view:
        found = prepared.run(view)
    say(console, prepared.next_command(found.profile), "bold")
