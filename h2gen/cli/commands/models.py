"""``h2gen models``: list the known models, or print what is known of one, or its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2gen.cli import completion
from h2gen.cli.commands.models_check import check
from h2gen.cli.help import Command, Group
from h2gen.errors import ModelError

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    help="List the known models, or show one.",
    invoke_without_command=True,
)


@app.callback()
def _list(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per model.")] = False,
) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from h2gen.cli.views.models import print_catalogue

    print_catalogue(as_json=as_json)


@app.command("path", cls=Command)
def path(
    name: Annotated[
        str, typer.Argument(help="An alias, such as dev.", metavar="NAME", autocompletion=completion.models)
    ],
) -> None:
    """Print a model's folder."""
    from h2gen.models.catalogue import resolve
    from h2gen.models.hub import cached

    checkpoint = resolve(name)
    folder = cached(str(checkpoint.location)) if checkpoint.kind == "hub" else Path(checkpoint.location)
    if folder is None:
        raise ModelError(f"{name!r} is not on this machine yet; it is downloaded for the first picture made with it.")
    print(folder)


@app.command("show", cls=Command)
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="An alias, a folder, a file or a hub id.", metavar="NAME", autocompletion=completion.models
        ),
    ],
    base: Annotated[
        str | None, typer.Option("--base", help="Model that supplies the rest of a file.", metavar="NAME")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what a model takes and needs: tasks, options, defaults, stages, memory. Nothing is loaded."""
    from h2gen.cli.views.models import print_model
    from h2gen.settings.describe import describe

    print_model(describe(name, base), as_json=as_json)


app.command("check", cls=Command)(check)
