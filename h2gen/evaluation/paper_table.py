"""``h2gen bench --paper``: the paper's table, with the fidelity metrics and the fewer-steps baseline that it lacks.

Source: arXiv 2510.27171. The paper does not state the settings of its block cache and TeaCache; here they run where
they compute as many blocks as H2-Cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from h2gen.batches.jobs import Jobs
from h2gen.batches.prompts import read_prompts
from h2gen.cache.config import CacheConfig
from h2gen.errors import SettingError
from h2gen.evaluation.cases import PromptFiles, cases_of, file_names
from h2gen.evaluation.metrics import choose_metrics
from h2gen.evaluation.options import CompareObserver, MethodOptions
from h2gen.evaluation.peers import choose_peers
from h2gen.evaluation.report import Story, check_report_folder, write_report
from h2gen.evaluation.results import Comparison

METRICS = "clip-iqa,psnr,ssim,lpips"
"""The paper judges only by CLIP-IQA."""
_SEED = 0
_PEERS = "block,tea"


def paper_table(
    prompts: PromptFiles,
    *,
    prompt_key: str | None = None,
    limit: int | None = None,
    repeat: int = 1,
    report: Path | None = None,
    observer: CompareObserver | None = None,
    **settings: Any,
) -> Comparison:
    """Run the paper's protocol: seed 0, the paper's thresholds, its block cache and TeaCache.

    Args:
        prompts: prompt files.
        prompt_key: key of the prompt in JSON Lines.
        limit: number of prompts, at most.
        repeat: timed runs per image.
        report: write an HTML report into this new folder.
        observer: receives progress events.
        settings: ``model``, ``steps``, ``size``, ``device``, ``dtype`` and ``offload``.

    Raises:
        H2GenError: something cannot be used, or failed. The observer's ``compared`` already has the figures of what
            was finished before.
    """
    paths = file_names(prompts)
    if not paths:
        raise SettingError("--paper needs prompts; give a file of them with --prompts.")
    jobs = Jobs(read_prompts(paths, prompt_key), {**settings, "preset": "paper", "seed": str(_SEED), "cfg": 1.0})
    check_report_folder(report)
    cases, shared = cases_of(jobs, limit)
    methods = MethodOptions([CacheConfig()], peers=choose_peers(_PEERS), repeat=repeat)
    metrics = choose_metrics(METRICS)
    from h2gen.evaluation.comparison_run import run_comparison  # loads torch

    observer = observer or CompareObserver()
    for notice in jobs.request.notices:
        observer.notice(notice)
    run = run_comparison(jobs.request, cases, shared, metrics, methods, observer, report=report)
    observer.compared(run.comparison)
    if report is not None:
        observer.wrote(write_report(run.comparison, report, report, Story("h2gen bench --paper")))
    if run.error is not None:
        raise run.error
    return run.comparison
