"""``h2gen models``: list the known models, or print the folder of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2gen.cli import completion
from h2gen.cli.help import Command, Group
from h2gen.errors import ModelError

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    help="List the known models, or print the folder of one.",
    invoke_without_command=True,
)


@app.callback()
def _list(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from rich.table import Table

    from h2gen.cli.console import stdout
    from h2gen.models import CATALOGUE, is_downloaded

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("alias", no_wrap=True)
    table.add_column("repository", no_wrap=True)
    table.add_column("licence")
    table.add_column("params", no_wrap=True, justify="right")
    table.add_column("download", no_wrap=True, justify="right")
    for entry in CATALOGUE.values():
        size = entry.parameters / 1e6
        table.add_row(
            entry.name,
            entry.repo or "bundled",
            entry.licence + (", gated" if entry.gated else ""),
            f"{size / 1e3:.1f} B" if size >= 1e3 else f"{size:.0f} M",
            "-" if entry.repo is None else "downloaded" if is_downloaded(entry) else f"{entry.download_gb:g} GB",
        )
    stdout().print(table)


@app.command("path", cls=Command)
def path(
    name: Annotated[
        str, typer.Argument(help="An alias, such as dev.", metavar="NAME", autocompletion=completion.models)
    ],
) -> None:
    """Print a model's folder."""
    from h2gen.models import CATALOGUE, local_path, resolve

    checkpoint = resolve(name)
    folder = local_path(CATALOGUE[name]) if name in CATALOGUE else Path(checkpoint.location)
    if folder is None:
        raise ModelError(f"{name!r} is not on this machine yet; it is downloaded for the first picture made with it.")
    print(folder)
