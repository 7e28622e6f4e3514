"""``h2gen PROMPT``: make a picture and show each step's decisions."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from h2gen.cli import options
from h2gen.errors import SettingError
from h2gen.wording import did_you_mean

_COMMANDS = ("batch", "bench", "compare", "frontier", "info", "models", "presets", "replay", "shell", "tune")


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to paint; - reads it from stdin.", metavar="PROMPT")
    ] = None,
    prompt_option: Annotated[
        str | None,
        options.option("--prompt", "-p", help="The prompt, where it looks like a command.", panel=options.PICTURE),
    ] = None,
    seed: options.Seeds = None,
    count: options.Count = None,
    batch_size: options.BatchSize = 1,
    size: options.Size = None,
    steps: options.Steps = None,
    solver: options.Solver = None,
    guidance: options.Guidance = None,
    cfg: options.Cfg = None,
    negative: options.Negative = None,
    max_sequence_length: options.MaxSequenceLength = None,
    preset: options.Preset = None,
    tau1: options.Tau1 = None,
    tau2: options.Tau2 = None,
    warmup_steps: options.WarmupSteps = None,
    final_steps: options.FinalSteps = None,
    max_consecutive: options.MaxConsecutive = None,
    forecast: options.Forecast = None,
    plan: options.Plan = None,
    tolerance: options.Tolerance = None,
    budget: options.Budget = None,
    hierarchy: options.Hierarchy = None,
    max_detail_age: options.MaxDetailAge = None,
    pfs: options.Pfs = None,
    replay_decisions: options.ReplayDecisions = None,
    no_cache: options.NoCache = False,
    speedup: options.Speedup = None,
    fidelity: options.Fidelity = None,
    nearest: options.Nearest = False,
    model: options.Model = None,
    base: options.Base = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offload: options.Offload = None,
    out: options.Out = None,
    format: options.Format = None,
    no_metadata: options.NoMetadata = False,
    sidecar: options.Sidecar = False,
    trace: options.TracePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Make a picture with a Flux model, and show which blocks H2-Cache ran at each step.

    Example: h2gen "a cat" --tau1 0.08 --tau2 0.2
    """
    given = options.settings_in(locals())
    # Imported here and below, and not above: this module is loaded for every --help.
    from h2gen.cli.console import make_console, say
    from h2gen.cli.render import RenderOptions, produce, show_plan, tell
    from h2gen.output.recorded_decisions import decisions_of
    from h2gen.settings.resolve import user_defaults
    from h2gen.settings.seeds import choose_seeds
    from h2gen.settings.speedup import Goal, request_for_goal

    console = make_console()
    console.quiet = quiet
    wishes = RenderOptions(trace, as_json, verbose, not no_metadata, sidecar, options.check_batch_size(batch_size))
    words = _prompt(prompt, prompt_option)
    seeds = choose_seeds(given.pop("seed"), given.pop("count"))
    recorded = [] if replay_decisions is None else [("trace", decisions_of(replay_decisions, given))]
    layers = [("option", {**given, "seed": seeds[0]}), *recorded, *user_defaults()]
    planned = request_for_goal(words, layers, Goal(speedup, fidelity, nearest))
    if prompt and prompt in words and " " not in prompt and did_you_mean(prompt, _COMMANDS) != ".":
        say(console, f"Painting {prompt!r}{did_you_mean(prompt, _COMMANDS)}", "yellow")
    if trace is not None and len(seeds) > 1:
        raise SettingError(
            f"A trace is of one picture, and there are {len(seeds)}; leave out --trace or give one seed."
        )
    if dry_run:
        tell(planned, console)
        show_plan(planned, seeds, as_json)
        return
    produce(planned, seeds, console, wishes)


def _prompt(argument: str | None, option: str | None) -> str:
    from h2gen.settings.values import LONGEST_PROMPT, clean_prompt

    if argument is not None and option is not None:
        raise SettingError("There are two prompts, one as an argument and one with --prompt; give one.")
    words = argument if option is None else option
    if words is None:
        raise SettingError("There is no prompt; say what to paint, such as: h2gen 'a cat'")
    if words == "-":
        try:
            words = sys.stdin.buffer.read(4 * LONGEST_PROMPT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SettingError("The prompt on stdin is not UTF-8 text.") from error
    return clean_prompt(words)
