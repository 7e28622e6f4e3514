"""``h2gen.compare``: cached images against uncached ones, fewer steps that take as long, and other caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.batches.jobs import Jobs
from h2gen.errors import SettingError
from h2gen.evaluation.cases import PromptFiles, cases_of, read_entries, split_options
from h2gen.evaluation.effort import Effort, effort
from h2gen.evaluation.metrics import Metrics, choose_metrics
from h2gen.evaluation.number_format import times
from h2gen.evaluation.options import CompareObserver, CompareOptions, MethodOptions
from h2gen.evaluation.peers import choose_peers
from h2gen.evaluation.recommend import SAVES, numbered, recommended, save_preset
from h2gen.evaluation.report import check_report_folder, write_report
from h2gen.evaluation.results import Case, Comparison
from h2gen.evaluation.threshold_grid import Values, grid, parse_values
from h2gen.output.save import target_of
from h2gen.settings import presets
from h2gen.settings.resolve import Request
from h2gen.settings.speedup import profile_key_of
from h2gen.settings.values import Settings

if TYPE_CHECKING:
    from h2gen.evaluation.comparison_run import FinishedRun


def compare(
    prompt: str | None = None,
    *,
    prompts: PromptFiles = None,
    prompt_key: str | None = None,
    tau1: Values = None,
    tau2: Values = None,
    tolerance: Values = None,
    options: CompareOptions | None = None,
    observer: CompareObserver | None = None,
    strict: bool = False,
    **settings: Any,
) -> Comparison:
    """Measure what the cache gains and costs, compared with simply using fewer steps.

    >>> import h2gen
    >>> found = h2gen.compare("a cat", tau1=(0.05, 0.1), tau2=0.2, model="dev", seed=7)  # doctest: +SKIP
    >>> best = found.method(found.chosen)  # doctest: +SKIP
    >>> best.speedup, best.scores["psnr"].mean  # doctest: +SKIP

    Args:
        prompt: what to draw; or give ``prompts``.
        prompts: prompt files, as ``h2gen batch`` reads them.
        prompt_key: key of the prompt in JSON Lines.
        tau1, tau2, tolerance: one value or several; every combination is measured.
        options: what else is compared, how, and which files are written.
        observer: receives progress events.
        strict: an option that the model ignores is an error.
        settings: named like the command line's options, such as ``model``, ``steps``, ``seed`` or ``preset``; also
            the fields of ``CompareOptions``, which replace those of ``options``.

    Returns:
        All figures.

    Raises:
        H2GenError: something cannot be used, or failed. The observer's ``compared`` already has the figures of what
            was finished before.
        ArgumentError: there is no such argument.
    """
    prepared = prepare_comparison(
        prompt,
        prompts=prompts,
        prompt_key=prompt_key,
        tau1=tau1,
        tau2=tau2,
        tolerance=tolerance,
        options=options,
        strict=strict,
        **settings,
    )
    if observer is not None:
        for notice in prepared.request.notices:
            observer.notice(notice)
    return prepared.run(observer)


def prepare_comparison(
    prompt: str | None = None,
    *,
    prompts: PromptFiles = None,
    prompt_key: str | None = None,
    tau1: Values = None,
    tau2: Values = None,
    tolerance: Values = None,
    options: CompareOptions | None = None,
    strict: bool = False,
    **settings: Any,
) -> PreparedComparison:
    """Check all arguments of ``compare``; nothing is loaded or written."""
    own = ("prompt", "prompts", "prompt_key", "tau1", "tau2", "tolerance", "options", "observer", "strict")
    settings, options = split_options("compare", settings, options or CompareOptions(), own)
    first = {
        name: None if values is None else parse_values(name, values)[0]
        for name, values in (("tau1", tau1), ("tau2", tau2), ("tolerance", tolerance))
    }
    reading = read_entries(prompt, prompts, prompt_key, may_be_empty=bool(settings.get("redux")))
    jobs = Jobs(reading, {**settings, **first})
    if strict:
        jobs.check_strict()
    target = target_of(jobs.request.out, "png")
    if target.stem is not None:
        raise SettingError(f"out is {jobs.request.out!r}; a comparison needs a folder for its files.")
    check_report_folder(options.report)
    if options.save_preset is not None:
        presets.check_new(options.save_preset)
    cases, shared = cases_of(jobs, options.limit)
    caches = grid(shared.cache, tau1, tau2, tolerance)
    if not any(cache.enabled for cache in caches):
        raise SettingError("The cache is off; give --tau1 and --tau2, or a --preset, to compare it with.")
    if options.row is not None and not 1 <= options.row <= len(caches):
        raise SettingError(f"row is {options.row}; there are {len(caches)}, counted from 1.")
    methods = MethodOptions(
        caches,
        fewer=_step_counts(options.fewer, shared.steps),
        peers=() if options.against is None else choose_peers(options.against, jobs.request.checkpoint),
        truth=options.truth,
        repeat=options.repeat,
    )
    metrics = None
    if options.metrics is not None or options.clip_model is not None:
        metrics = choose_metrics(options.metrics, clip_model=options.clip_model)
        if not metrics.infos:
            raise SettingError(" ".join(metrics.notices))
    request = jobs.remarked_request
    planned = effort(methods, len(cases), profile_key_of(request.checkpoint, shared), request.load.loading)
    return PreparedComparison(request, cases, planned, shared, metrics, methods, options, target.folder)


@dataclass(frozen=True)
class PreparedComparison:
    """A comparison whose input has been checked. ``run`` loads the model and compares.

    ``request`` is the model with all settings, ``cases`` are the prompts and seeds, ``effort`` is what it will take.
    """

    request: Request
    cases: Sequence[Case]
    effort: Effort
    _settings: Settings
    _metrics: Metrics | None
    _methods: MethodOptions
    _options: CompareOptions
    _out: Path

    def run(self, observer: CompareObserver | None = None) -> Comparison:
        """Compare, and write the files that were asked for.

        Raises:
            H2GenError: as ``compare``.
        """
        from h2gen.evaluation.comparison_run import run_comparison  # loads torch
        from h2gen.evaluation.video_metrics import suited

        observer = observer or CompareObserver()
        row = self._options.row
        run = run_comparison(
            self.request,
            self.cases,
            self._settings,
            suited(self._metrics or choose_metrics(), self._settings),  # which there are takes an import of torch
            self._methods,
            observer,
            choose=recommended if row is None else lambda results, _metrics: numbered(results, row),
            report=self._options.report,
        )
        observer.compared(run.comparison)  # before anything is written: the figures must not be lost if that fails
        self._write(run, observer)
        if run.error is not None:
            raise run.error
        return run.comparison

    def _write(self, run: FinishedRun, observer: CompareObserver) -> None:
        options, comparison = self._options, run.comparison
        if options.report is not None:
            observer.wrote(write_report(comparison, options.report, options.report))
        if options.images:
            from h2gen.evaluation.save_images import save_images

            for path in save_images(comparison, run.images, options.report or self._out):
                observer.wrote(path)
        if options.save_preset is not None:
            observer.wrote(save_preset(options.save_preset, comparison))
            speedup = comparison.method(comparison.chosen).speedup
            if speedup < SAVES:
                observer.warned(
                    f"The preset {options.save_preset!r} saves no time: it is {times(speedup)} times as fast as "
                    "without a cache. Choose another row with --row, or measure again on an idle machine."
                )


def _step_counts(fewer: str | Sequence[int] | None, steps: int) -> list[int]:
    """Numbers of steps such as ``20,10``."""
    try:
        parts = [] if fewer is None else fewer.split(",") if isinstance(fewer, str) else fewer
        counts = [int(part) for part in parts]
    except ValueError as error:
        raise SettingError(f"fewer is {fewer!r}; give numbers of steps such as 20,10.") from error
    for count in counts:
        if not 1 <= count < steps:
            raise SettingError(f"fewer is {fewer!r}; give numbers of steps from 1 to {steps - 1}.")
    return counts
