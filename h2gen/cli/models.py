"""``h2gen models``: list the aliases, or print a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from h2gen.errors import ModelError

app = typer.Typer(help="List the models known by name, or print one's folder.", invoke_without_command=True)


@app.callback()
def _list(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from h2gen.models import CATALOGUE, is_downloaded

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("alias", "repository", "licence", "transformer", "size", "here"):
        table.add_column(title, justify="right" if title in ("transformer", "size") else "left")
    for entry in CATALOGUE.values():
        table.add_row(
            entry.name,
            entry.repo or "bundled",
            entry.licence + (", gated" if entry.gated else ""),
            f"{entry.parameters / 1e9:.1f} B" if entry.parameters >= 1e9 else f"{entry.parameters / 1e6:.0f} M",
            f"{entry.download_gb:g} GB" if entry.repo else "-",
            "yes" if is_downloaded(entry) else "no",
        )
    Console(highlight=False, markup=False, emoji=False).print(table)


@app.command("path")
def path(name: Annotated[str, typer.Argument(help="An alias, such as dev.", metavar="NAME")]) -> None:
    """Print the folder that a model lies in."""
    from h2gen.models import CATALOGUE, local_path, resolve

    checkpoint = resolve(name)
    folder = local_path(CATALOGUE[name]) if name in CATALOGUE else Path(checkpoint.location)
    if folder is None:
        raise ModelError(f"{name!r} is not on this machine yet; the first picture with it downloads it.")
    print(folder)
