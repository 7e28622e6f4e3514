"""``h2gen replay PICTURE``: make a picture again from its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2gen.cli import options
from h2gen.settings.table import PICTURE


@options.takes_options("replay")
def replay(
    given: options.Given,
    picture: Annotated[Path, typer.Argument(help="A picture or a video, or its .toml sidecar.", metavar="PICTURE")],
    prompt: Annotated[str | None, options.option("--prompt", "-p", help="Another prompt.", panel=PICTURE)] = None,
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
    """Make a picture or a video again: the same pixels on the same machine. Options override the recorded settings."""
    from h2gen.cli.console import make_console, say
    from h2gen.cli.views.preview import options_for
    from h2gen.cli.views.request import loading_of, show_notices, show_request
    from h2gen.generation.render import Renderer, RenderOptions, check_output, render
    from h2gen.generation.requests import replay_request
    from h2gen.output.metadata import read_metadata

    prompt = None if prompt is None else options.without_options(prompt, "replay")
    console = make_console()
    console.quiet = quiet
    found = read_metadata(picture)
    request, seeds = replay_request(found, given, prompt, picture.suffix)
    asked = preview, preview_file, preview_every, preview_model
    previews = options_for(console, request.settings, *asked, dry_run=dry_run)
    render_options = RenderOptions(
        trace, not no_metadata, sidecar, overwrite=overwrite, strict=strict, preview=previews
    )
    targets = check_output(request, render_options, seeds)
    if dry_run:
        show_notices([*request.notices, *loading_of(request, preview_model=previews.model)], console)
        text, source = request.settings.prompt, found.settings.noun if prompt is None else "option"
        paths = [target.path(request.settings.title, seed) for target, seed in zip(targets, seeds, strict=True)]
        show_request(request, seeds, as_json, prompt=(text, source), whole=verbose, paths=paths, overwrite=overwrite)
        return
    from h2gen.cli.views.picture import PictureView

    def show_differences(renderer: Renderer) -> None:
        for line in renderer.differences(found, request.settings):
            say(console, line, "yellow")

    view = PictureView(console, as_json=as_json, verbose=verbose, preview=preview, on_loaded=show_differences)
    render(request, seeds, render_options, view, tiled=found.tiled)
