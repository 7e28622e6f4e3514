"""``h2gen PROMPT``: make a picture and show each step's decisions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from h2gen.cli import options
from h2gen.cli.commands import COMMANDS
from h2gen.errors import SettingError
from h2gen.settings.table import PICTURE
from h2gen.wording import did_you_mean


@options.takes_options("generate")
def generate(
    given: options.Given,
    prompt: Annotated[
        str | None, typer.Argument(help="What to paint; - reads it from stdin.", metavar="PROMPT")
    ] = None,
    prompt_option: Annotated[
        str | None,
        options.option("--prompt", "-p", help="The prompt, if it looks like a command.", panel=PICTURE),
    ] = None,
    batch_size: int = 1,
    replay_decisions: Path | None = None,
    speedup: float | None = None,
    fidelity: float | None = None,
    policy: str = "auto",
    nearest: bool = False,
    no_metadata: bool = False,
    overwrite: bool = False,
    sidecar: bool = False,
    trace: Path | None = None,
    preview: bool = False,
    preview_file: Path | None = None,
    preview_every: int | None = None,
    preview_model: str | None = None,
    as_json: bool = False,
    strict: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    dry_run: bool = False,
) -> None:
    """Make a picture or a video, and show which blocks H2-Cache ran at each step.

    Example: h2gen "a cat" --seed 7 --size 16:9 --out cat.png
    """
    # Imported here and below, and not above: this module is loaded for every --help.
    from h2gen.cli.console import make_console, say
    from h2gen.cli.views.preview import options_for
    from h2gen.cli.views.request import loading_of, show_notices, show_request
    from h2gen.generation.render import RenderOptions, check_output, render
    from h2gen.generation.requests import generate_request
    from h2gen.settings.speedup import Goal

    console = make_console()
    console.quiet = quiet
    text = _prompt(prompt, prompt_option, needed=not given.get("redux"))
    request, seeds = generate_request(text, given, Goal(speedup, fidelity, policy, nearest), replay_decisions)
    if prompt and prompt in text and " " not in prompt and did_you_mean(prompt, COMMANDS) != ".":
        say(console, f"Making a picture of {prompt!r}{did_you_mean(prompt, COMMANDS)}", "yellow")
    asked = preview, preview_file, preview_every, preview_model
    previews = options_for(console, request.settings, *asked, dry_run=dry_run)
    render_options = RenderOptions(trace, not no_metadata, sidecar, batch_size, overwrite, strict, previews)
    targets = check_output(request, render_options, seeds)
    if dry_run:
        show_notices([*request.notices, *loading_of(request, batch_size, previews.model)], console)
        source = "option" if prompt is None else "stdin" if prompt == "-" else "argument"
        paths = [target.path(request.settings.title, seed) for target, seed in zip(targets, seeds, strict=True)]
        show_request(request, seeds, as_json, prompt=(text, source), whole=verbose, paths=paths, overwrite=overwrite)
        return
    from h2gen.cli.views.picture import PictureView

    render(request, seeds, render_options, PictureView(console, as_json=as_json, verbose=verbose, preview=preview))


def _prompt(argument: str | None, option: str | None, *, needed: bool) -> str:
    from h2gen.settings.table import LONGEST_PROMPT
    from h2gen.settings.values import clean_prompt

    if argument is not None and option is not None:
        raise SettingError("There are two prompts, one as an argument and one with --prompt; give one.")
    text = argument if option is None else option
    if text is None and not needed:
        return ""
    if text is None:
        raise SettingError("There is no prompt; say what to paint, such as: h2gen 'a cat'")
    if text == "-":
        try:
            text = sys.stdin.buffer.read(4 * LONGEST_PROMPT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SettingError("The prompt on stdin is not UTF-8 text; convert it to UTF-8.") from error
    return options.without_options(clean_prompt(text, may_be_empty=True), "generate")
