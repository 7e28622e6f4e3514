"""``h2gen.tune``: finds the best settings for each speed and writes them as a profile, for --speedup and --fidelity."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from h2gen import files
from h2gen.errors import OutputError, SettingError, Stopped
from h2gen.evaluation import builtin_prompts
from h2gen.evaluation.cases import PromptFiles, split_options, uncached_request
from h2gen.evaluation.metrics import choose_metrics
from h2gen.evaluation.options import MethodOptions
from h2gen.evaluation.results import Case, Comparison
from h2gen.evaluation.tune.estimate import TuneEstimate, estimate
from h2gen.evaluation.tune.options import TuneObserver, TuneOptions, check_steps
from h2gen.files import check_file, check_folder
from h2gen.settings.profiles import Profile, file_name, read_profile, user_folder, write_profile
from h2gen.settings.resolve import Request
from h2gen.settings.speedup import command_for, profile_key_of
from h2gen.wording import plural


@dataclass(frozen=True)
class TuneResult:
    """The profile, which is written to ``profile.path``, and the comparison that its figures come from."""

    profile: Profile
    comparison: Comparison


def tune(
    *,
    prompts: PromptFiles = None,
    prompt_key: str | None = None,
    options: TuneOptions | None = None,
    observer: TuneObserver | None = None,
    **settings: Any,
) -> TuneResult:
    """Find what each speed costs in fidelity for a model, steps and size, and write it as a profile.

    An interrupted search continues when it is called again with the same arguments.

    >>> import h2gen
    >>> found = h2gen.tune(model="dev", steps=50)  # doctest: +SKIP
    >>> found.profile.for_speedup(3).label  # doctest: +SKIP

    Args:
        prompts: prompt files, with enough prompts to search and to check on; None takes the built-in prompts.
        prompt_key: key of the prompt in JSON Lines.
        options: how much is tried, and where the profile goes.
        observer: receives progress events.
        settings: named like the command line's options, such as ``model``, ``steps`` and ``size``; also the fields of
            ``TuneOptions``, which replace those of ``options``.

    Raises:
        H2GenError: something cannot be used, or failed.
        Stopped: it was interrupted.
        ArgumentError: there is no such argument.
    """
    prepared = prepare_tuning(prompts=prompts, prompt_key=prompt_key, options=options, **settings)
    if observer is not None:
        for notice in prepared.request.notices:
            observer.notice(notice)
    return prepared.run(observer)


def prepare_tuning(
    *,
    prompts: PromptFiles = None,
    prompt_key: str | None = None,
    options: TuneOptions | None = None,
    **settings: Any,
) -> PreparedTuning:
    """Check all arguments of ``tune``; nothing is loaded or written."""
    own = ("prompts", "prompt_key", "options", "observer")
    settings, options = split_options("tune", settings, options or TuneOptions(), own)
    search, check = options.search, options.check
    searched, checked = builtin_prompts.TUNING, builtin_prompts.CHECKING
    if not prompts and (search > len(searched) or check > len(checked)):
        raise SettingError(
            f"search is {search} and check is {check}; the built-in prompts are {len(searched)} to search on and "
            f"{len(checked)} to check on; give more with --prompts."
        )

    def built_in(video: bool) -> list[Case]:
        return [*builtin_prompts.to_search(video)[:search], *builtin_prompts.to_check(video)[:check]]

    request, cases = uncached_request(settings, prompts, prompt_key, built_in, search + check)
    check_steps(request.checkpoint.name, request.settings.steps)
    if len(cases) < search + check:
        raise SettingError(
            f"The files hold {plural(len(cases), 'prompt')}, but {search} to search on and {check} to check on are "
            "needed; give more prompts, or a smaller --search and --check."
        )
    _check_files(options.profile)
    return PreparedTuning(request, cases[:search], cases[search:], options)


def _check_files(path: Path | None) -> None:
    """Check, before hours are spent, that measurements and profile can be written. An existing file is overwritten only
    if it is a profile. None is the user's own folder."""
    try:
        check_folder(files.user_folder("cache"))
        if path is None:
            check_folder(user_folder())
            return
    except OSError as error:
        raise OutputError(f"The measurements cannot be kept: {error.strerror}.") from error
    if path.suffix != ".toml":
        raise SettingError(f"profile is {str(path)!r}; give a file that ends in .toml.")
    check_file(path)
    if os.path.exists(path):
        read_profile(path)


@dataclass(frozen=True)
class PreparedTuning:
    """Tuning whose input has been checked. ``run`` loads the model and searches.

    ``request`` is the model with all settings; ``searched`` and ``checked`` are the prompts and seeds of the search and
    of the measurement that follows it.
    """

    request: Request
    searched: Sequence[Case]
    checked: Sequence[Case]
    options: TuneOptions

    @property
    def estimate(self) -> TuneEstimate:
        """What it would take, and where the profile would go."""
        key = profile_key_of(self.request.checkpoint, self.request.settings)
        return estimate(self.options, key, self.request.load.loading)

    def next_command(self, profile: Profile) -> str:
        """The line to type once the profile is there, such as ``h2gen "a cat" --speedup 3``, in a sentence."""
        fastest = max(choice.figures.speedup for choice in profile.choices)
        speed = next((speed for speed in (3.0, 2.0, 1.5, 1.2) if speed <= fastest), None)
        if speed is None:
            return "No measured setting saves time on this machine, so the profile offers nothing to choose."
        if self.options.profile is not None:
            return f"To choose from it with --speedup or --fidelity, move it to {str(user_folder())!r}."
        goal = "h2gen", "a cat", "--speedup", f"{speed:g}"
        loading = self.request.load.loading
        return f"Now use it: {command_for(self.request.checkpoint, self.request.settings, *goal, loading=loading)}"

    def run(self, observer: TuneObserver | None = None) -> TuneResult:
        """Search, measure what was found on other prompts, and write the profile with its chart.

        Raises:
            H2GenError: as ``tune``.
        """
        # Imported here: these load torch.
        from h2gen.evaluation.comparison_run import ComparisonRun
        from h2gen.evaluation.make_image import load_model
        from h2gen.evaluation.tune.build_profile import build_profile
        from h2gen.evaluation.tune.measurement_log import LoggedSamples, open_log
        from h2gen.evaluation.tune.search import TuneSearch
        from h2gen.evaluation.video_metrics import suited

        observer = observer or TuneObserver()
        settings = self.request.settings
        session, content_hash = load_model(self.request)
        observer.loaded(session)
        key, loading = profile_key_of(self.request.checkpoint, settings, content_hash), self.request.load.loading
        path = self.options.profile or user_folder() / file_name(key, loading)
        with open_log(key, session, settings, loading) as log:
            if len(log):
                observer.resumed(len(log))
            try:
                metrics = suited(choose_metrics("psnr,ssim"), settings)
                search = TuneSearch(session, settings, self.searched, self.options, log, observer)
                methods = search.candidates()
                run = ComparisonRun(
                    session,
                    self.checked,
                    settings,
                    metrics,
                    MethodOptions(baselines=False, methods=methods, repeat=1),
                    observer=observer,
                    store=LoggedSamples(log, self.checked, metrics.infos),
                )
                run.run()
            except KeyboardInterrupt:
                raise Stopped("Stopped. Run the same command to continue.") from None
            comparison = run.result(content_hash=content_hash)
            for notice in search.notices:
                observer.notice(notice)
            words = ("h2gen", "tune", *self.options.arguments)
            command = command_for(self.request.checkpoint, settings, *words, loading=loading)
            facts = {"searched": len(self.searched), "command": command, **loading}
            profile = build_profile(comparison, methods, key, path, facts)
            observer.wrote(write_profile(profile))
            log.remove()
        observer.tuned(profile, comparison)
        _write_chart(profile, comparison, observer)
        return TuneResult(profile, comparison)


def _write_chart(profile: Profile, comparison: Comparison, observer: TuneObserver) -> None:
    """Draw all candidates, next to the profile."""
    from h2gen.evaluation.charts import pareto_chart

    path = profile.path.with_suffix(".svg")
    ssim = next(metric for metric in comparison.metrics if metric.name == "ssim")
    try:
        path.write_text(pareto_chart(comparison, ssim, width=720.0), encoding="utf-8")
    except OSError as error:  # the profile, which matters more, is written
        observer.notice(f"The chart {str(path)!r} cannot be written: {error.strerror or error}.")
    else:
        observer.wrote(path)
