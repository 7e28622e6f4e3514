"""``h2gen frontier``: at several budgets of blocks, everybody's best, on prompts that nothing was chosen by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from h2gen.cli import options
from h2gen.errors import SettingError

if TYPE_CHECKING:
    from h2gen.evaluation.frontier import Row


def frontier(
    prompts: options.Prompts = None,
    prompt_key: options.PromptKey = None,
    limit: Annotated[int, options.option("--limit", help="The first N prompts (48).", panel=options.MEASURING)] = 48,
    budgets: Annotated[
        str, options.option("--budgets", help="Shares of the blocks (0.5,0.33,0.25,0.2).", panel=options.MEASURING)
    ] = "0.5,0.33,0.25,0.2",
    against: Annotated[
        str | None,
        options.option(
            "--against", help="Other caches: fb,taylor,mag,dbcache,...; '' for none.", panel=options.MEASURING
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        options.option(
            "--profile", help="Whose settings are ours; else it is found.", panel=options.MEASURING, metavar="FILE"
        ),
    ] = None,
    report: options.Report = None,
    size: options.Size = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    cfg: options.Cfg = None,
    negative: options.Negative = None,
    max_sequence_length: options.MaxSequenceLength = None,
    model: options.Model = None,
    base: options.Base = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offload: options.Offload = None,
    as_json: options.FiguresAsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """At several budgets of blocks, the fidelity of fewer steps, of other caches, of the paper's and of h2gen's own.

    Example: h2gen frontier --steps 50 --report frontier
    """
    given = options.settings_in(locals())
    # Imported here, and not above: this module is loaded for every --help.
    from h2gen.cli.commands.tune import shares
    from h2gen.cli.console import make_console, say
    from h2gen.cli.evaluating import check_report, conduct, uncached
    from h2gen.cli.render import show_plan, tell
    from h2gen.evaluation import builtin_prompts as built_in
    from h2gen.evaluation import frontier as study
    from h2gen.evaluation.options import CompareOptions
    from h2gen.evaluation.peers import choose_peers, default_peers
    from h2gen.models.content_hash import content_hash
    from h2gen.settings.profiles import find_profile, mismatch, read_profile
    from h2gen.settings.speedup import command_for, profile_key_of

    if limit < 1:
        raise SettingError(f"limit is {limit}; give a whole number from 1 on.")
    console = make_console()
    console.quiet = quiet
    if not prompts and limit > len(built_in.FRONTIER):
        raise SettingError(f"limit is {limit}; there are {len(built_in.FRONTIER)} prompts: give more with --prompts.")
    plan, cases = uncached(given, prompts, prompt_key, built_in.cases(built_in.FRONTIER, 3000), limit)
    wanted = shares(budgets)
    absent: list[str] = []
    if against is None:
        peers, absent = default_peers()
    else:
        peers = choose_peers(against) if against.strip() else []
    check_report(report)
    if dry_run:
        tell(plan, console)
        show_plan(plan, [case.seed for case in cases], as_json)
        return
    here = profile_key_of(plan.checkpoint, plan.settings)
    if profile is not None:
        found = read_profile(profile)
        notices = mismatch(found.key, here, content_hash(plan.checkpoint))
        found = found.fitted(here.steps)
    else:
        found, notices = find_profile(
            here, lambda: content_hash(plan.checkpoint), command_for(plan.checkpoint, plan.settings)
        )
    for notice in (*notices, *absent):
        say(console, notice, "yellow")
    own = study.ours(found, wanted)

    from h2gen.evaluation.metrics import choose_metrics
    from h2gen.evaluation.report import write_report
    from h2gen.evaluation.threshold_grid import recommended

    wishes = CompareOptions((), baselines=False, methods=own, peers=peers, budgets=wanted, repeat=1)
    comparing, identity, ended = conduct(
        plan, cases, plan.settings, choose_metrics("psnr,ssim"), wishes, console, folder=report, verbose=verbose
    )
    comparison = comparing.result(recommended, identity)
    rows = study.rows(comparison, own, wanted)
    for notice in comparison.notices:
        say(console, notice, "yellow")
    if as_json:
        whole = {"rows": [row.to_json() for row in rows], "comparison": comparison.to_json()}
        print(json.dumps(whole, allow_nan=False))
    else:
        _show(rows, wanted)
    if report is not None:
        say(console, str(write_report(comparison, report, report)), "bold")
    if ended is not None:
        raise ended


def _show(rows: Sequence[Row], budgets: Sequence[float]) -> None:
    """A table for each budget, the closest first, and how ours compare with the best of the others."""
    from rich.console import Console
    from rich.text import Text

    from h2gen.cli.views.view import columns
    from h2gen.evaluation.figures import percent
    from h2gen.evaluation.frontier import AIM, verdict
    from h2gen.wording import printable

    out = Console(highlight=False, markup=False, emoji=False)
    for budget in budgets:
        numbers = [(title, "right") for title in ("blocks", "1 - SSIM", "worst", "PSNR", "worst")]
        table = columns(*numbers, ("method", "left"))
        for row in rows:
            if row.budget == budget:
                scores = row.result.scores
                table.add_row(
                    percent(row.result.share),
                    f"{row.error:.4f}",
                    f"{1 - scores['ssim'].worst:.3f}",
                    f"{min(scores['psnr'].mean, 120):.1f}",
                    f"{min(scores['psnr'].worst, 120):.1f}",
                    Text(printable(row.result.label), overflow="ellipsis"),
                    style="bold" if row.whose == "ours" else "",
                )
        out.print(f"At {percent(budget)} of the blocks")
        out.print(table)
        found = verdict(rows, budget)
        if found is not None:
            ratio, mine, rival = found
            aim = "reached" if ratio <= AIM else "missed"
            words = f"{mine.result.label}: {ratio:.2f} of the error of the best other, {rival.result.label}; "
            out.print(Text(printable(f"{words}the aim of {AIM:g} is {aim}.")))
        out.print()
