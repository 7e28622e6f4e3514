"""``h2gen tune``: find, for a model, steps and size, what each speed costs in fidelity, and keep it as a profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from h2gen.cli import options
from h2gen.errors import SettingError, Stopped

if TYPE_CHECKING:
    from rich.console import Console

    from h2gen.evaluation.results import Case, Comparison
    from h2gen.evaluation.tune.search import TuneOptions
    from h2gen.settings.profiles import Profile, ProfileKey
    from h2gen.settings.resolve import Request
    from h2gen.settings.values import Settings


def tune(
    prompts: options.Prompts = None,
    prompt_key: options.PromptKey = None,
    search: Annotated[
        int, options.option("--search", help="Search on so many prompts (4).", panel=options.MEASURING)
    ] = 4,
    check: Annotated[
        int, options.option("--check", help="Check on so many others (12).", panel=options.MEASURING)
    ] = 12,
    budgets: Annotated[
        str | None, options.option("--budgets", help="Shares of the blocks: 0.5,0.33,0.2.", panel=options.MEASURING)
    ] = None,
    tries: Annotated[
        int, options.option("--tries", help="Plans tried to polish one (24).", panel=options.MEASURING)
    ] = 24,
    profile: Annotated[
        Path | None,
        options.option(
            "--profile", help="Where to write it; else your data folder.", panel=options.MEASURING, metavar="FILE"
        ),
    ] = None,
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
    """Find the best that each speed can buy: plans, tolerances, solvers and numbers of steps, for --speedup and
    --fidelity. Stopped at any time, the same command goes on.

    Example: h2gen tune --model dev --steps 50
    """
    given = options.settings_in(locals())
    # Imported here, and not above: this module is loaded for every --help.
    from h2gen.cli.console import make_console
    from h2gen.cli.evaluating import uncached
    from h2gen.cli.render import show_plan, tell
    from h2gen.evaluation import builtin_prompts as built_in
    from h2gen.evaluation.tune.search import BUDGETS, TuneOptions, check_steps

    for name, value, least in (("search", search, 1), ("check", check, 1), ("tries", tries, 0)):
        if not least <= value <= 10_000:
            raise SettingError(f"{name} is {value}; give a whole number from {least} on.")
    console = make_console()
    console.quiet = quiet
    if not prompts and (search > len(built_in.TUNING) or check > len(built_in.CHECKING)):
        raise SettingError(
            f"There are {len(built_in.TUNING)} prompts to search on and {len(built_in.CHECKING)} to check on; give "
            "more with --prompts."
        )
    ours = [*built_in.cases(built_in.TUNING, 1000)[:search], *built_in.cases(built_in.CHECKING, 2000)[:check]]
    plan, cases = uncached(given, prompts, prompt_key, ours, search + check)
    check_steps(plan.checkpoint.name, plan.settings.steps)
    if len(cases) < search + check:
        raise SettingError(
            f"The files hold {len(cases)} prompts, and {search} to search on and {check} to check on are wanted; give "
            "more, or a smaller --search and --check."
        )
    searched, checked = cases[:search], cases[search:]
    if profile is not None:
        _check_profile(profile)
    wishes = TuneOptions(BUDGETS if budgets is None else shares(budgets), tries)
    if dry_run:
        tell(plan, console)
        show_plan(plan, [case.seed for case in (*searched, *checked)], as_json)
        return
    made, comparison = _tuned(plan, searched, checked, wishes, profile, console, verbose)
    _show(made, comparison, console, as_json)


def shares(text: str) -> tuple[float, ...]:
    """Shares of the blocks such as ``0.5,0.33``."""
    try:
        shares = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise SettingError(f"budgets is {text!r}; give shares of the blocks such as 0.5,0.33,0.2.") from error
    if not all(0 < share < 1 for share in shares):
        raise SettingError(f"budgets is {text!r}; each must be above 0 and below 1.")
    return tuple(sorted(shares, reverse=True))


def _check_profile(path: Path) -> None:
    """Find out before hours are spent whether the profile can be written there, over nothing but a profile."""
    from h2gen.output.save import check_folder
    from h2gen.settings.profiles import read_profile

    if path.suffix != ".toml":
        raise SettingError(f"profile is {str(path)!r}; give a file that ends in .toml.")
    if path.exists():
        read_profile(path)
    check_folder(path.parent)


def _tuned(
    plan: Request,
    searched: Sequence[Case],
    checked: Sequence[Case],
    wishes: TuneOptions,
    path: Path | None,
    console: Console,
    verbose: bool,
) -> tuple[Profile, Comparison]:
    from h2gen.cli.console import route_warnings, say
    from h2gen.cli.evaluating import opened
    from h2gen.cli.render import stoppable, tell
    from h2gen.cli.views.compare import CompareView
    from h2gen.cli.views.tune import TuneView
    from h2gen.settings.profiles import file_name, user_folder, write_profile
    from h2gen.settings.speedup import profile_key_of

    tell(plan, console)
    route_warnings(console, verbose)
    with TuneView(console, len(searched), wishes) as view:
        session, content_hash = opened(plan)
        from h2gen.evaluation.compare import Comparing
        from h2gen.evaluation.metrics import choose_metrics
        from h2gen.evaluation.options import CompareOptions
        from h2gen.evaluation.threshold_grid import recommended
        from h2gen.evaluation.tune.checking import Remembered, profile_of
        from h2gen.evaluation.tune.measurement_log import MeasurementLog
        from h2gen.evaluation.tune.search import Tuning

        situation = profile_key_of(plan.checkpoint, plan.settings, content_hash)
        where = path or user_folder() / file_name(situation)
        notebook = MeasurementLog(_notebook(situation), _header(session, plan.settings, content_hash))
        with notebook:
            if len(notebook):
                say(console, f"Going on where it was stopped, with {len(notebook)} measurements.", "dim")
            try:
                with stoppable(session, console):
                    tuning = Tuning(session, plan.settings, searched, wishes, notebook, view)
                    methods = tuning.candidates()
                    view.stop()
                    metrics = choose_metrics("psnr,ssim")
                    with CompareView(console, metrics.infos) as second:
                        comparing = Comparing(
                            session,
                            checked,
                            plan.settings,
                            metrics,
                            CompareOptions((), baselines=False, methods=methods, repeat=1),
                            watcher=second,
                            memory=Remembered(notebook, checked),
                        )
                        comparing.run()
            except KeyboardInterrupt:
                raise Stopped("Stopped; the same command goes on from here.") from None
            comparison = comparing.result(recommended, content_hash)
            for notice in tuning.notices:
                say(console, notice, "yellow")
            facts = {"searched": len(searched), "command": "h2gen tune"}
            made = profile_of(comparison, methods, situation, where, facts)
            say(console, str(write_profile(made)), "bold")
            notebook.remove()
    return made, comparison


def _notebook(situation: ProfileKey) -> Path:
    import platformdirs

    from h2gen.settings.profiles import file_name

    folder = Path(platformdirs.user_cache_dir("h2gen", appauthor=False)) / "tune"
    return folder / Path(file_name(situation)).with_suffix(".jsonl")


def _header(session: object, settings: Settings, content_hash: str) -> dict[str, object]:
    """What measurements hold for."""
    from h2gen.output.metadata import origin, versions

    made = origin(session, content_hash)  # type: ignore[arg-type]
    whole = {name: value for name, value in settings.to_json().items() if name not in ("prompt", "seed")}
    return {"versions": versions(), "model": content_hash, "device": made.device, "dtype": made.dtype, **whole}


def _show(profile: Profile, comparison: Comparison, console: Console, as_json: bool) -> None:
    """The curve on stdout, as a table and a chart or as JSON; the chart as a picture beside the profile."""
    import json
    from dataclasses import asdict

    from rich.console import Console as Out

    from h2gen.cli.console import say
    from h2gen.cli.views.tune import curve_table
    from h2gen.evaluation.charts import pareto_chart
    from h2gen.evaluation.figures import first_fidelity

    chart = profile.path.with_suffix(".svg")
    metric = next((info for info in comparison.metrics if info.name == "ssim"), first_fidelity(comparison))
    if metric is not None:
        try:
            chart.write_text(pareto_chart(comparison, metric, width=720.0), encoding="utf-8")
            say(console, str(chart), "bold")
        except OSError as error:  # the profile is safe, and the figures are still to be shown
            say(console, f"The chart {str(chart)!r} cannot be written: {error.strerror or error}.", "yellow")
    if as_json:
        whole = {
            "profile": str(profile.path),
            "situation": asdict(profile.key),
            "measured": dict(profile.measured),
            "choices": [asdict(choice) for choice in profile.choices],
            "comparison": comparison.to_json(),
        }
        print(json.dumps(whole, allow_nan=False))
        return
    out = Out(highlight=False, markup=False, emoji=False)
    out.print(curve_table(profile, out.width))
