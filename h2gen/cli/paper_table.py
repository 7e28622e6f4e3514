"""``h2gen bench --paper``: the paper's table, with the fidelity that it leaves out and the baseline that it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from h2gen.cache.config import CacheConfig
from h2gen.errors import SettingError

_METRICS = "clip-iqa,psnr,ssim,lpips"
_SEED = 0
_PEERS = "block,tea"


def paper_table(
    given: Mapping[str, Any],
    prompts: tuple[Sequence[str], str | None],
    limit: int | None,
    repeat: int,
    report: Path | None,
    as_json: bool,
) -> None:
    """Run the protocol and show its table.

    Args:
        given: model, steps, size, device, dtype and offload, as options give them.
        prompts: files, and the key of the prompt in JSON Lines.
        limit: so many prompts at most.
        repeat: timed runs of each picture.
        report: a new folder for a page; None writes none.
        as_json: print an object instead of the table.

    Raises:
        UsageError: something cannot be used.

    Source: arXiv 2510.27171; its block cache and TeaCache run here at the settings that compute as many blocks as
    H2-Cache does, for it does not print its own.
    """
    from h2gen.batches.jobs import Jobs
    from h2gen.batches.prompts import read_prompts
    from h2gen.cli.console import make_console, say
    from h2gen.cli.evaluating import check_report, conduct, show
    from h2gen.evaluation.cases import cases_of
    from h2gen.evaluation.metrics import choose_metrics
    from h2gen.evaluation.options import CompareOptions
    from h2gen.evaluation.peers import choose_peers
    from h2gen.evaluation.report import write_report
    from h2gen.evaluation.threshold_grid import recommended

    files, key = prompts
    if not files:
        raise SettingError("--paper needs prompts; give a file of them with --prompts.")
    jobs = Jobs(read_prompts(files, key), {**given, "preset": "paper", "seed": str(_SEED), "cfg": 1.0})
    check_report(report)
    cases, settings = cases_of(jobs, limit)
    console = make_console()
    wishes = CompareOptions([CacheConfig()], peers=choose_peers(_PEERS), repeat=repeat)
    comparing, identity, ended = conduct(
        jobs.plan, cases, settings, choose_metrics(_METRICS), wishes, console, folder=report, verbose=False
    )
    comparison = comparing.result(recommended, identity)
    show(comparison, console, as_json, lead=_METRICS.split(",")[0])
    if report is not None:
        say(console, str(write_report(comparison, report, report)), "bold")
    if ended is not None:
        raise ended
