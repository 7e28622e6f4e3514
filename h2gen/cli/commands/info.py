"""``h2gen info PICTURE...``: show how a picture was made, from its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from h2gen.errors import MetadataError
from h2gen.wording import printable


def info(
    pictures: Annotated[
        list[Path], typer.Argument(help="Pictures and videos, or their .toml sidecars.", metavar="PICTURE...")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")] = False,
) -> None:
    """Show how pictures or videos were made. No model is loaded."""
    from h2gen.cli.console import complain
    from h2gen.output.metadata import read_metadata

    failed = False
    for number, path in enumerate(pictures):
        try:
            found = read_metadata(path).everything
        except MetadataError as error:
            complain(str(error))
            failed = True
            continue
        if as_json:
            print(json.dumps({"path": str(path), **found}))
        else:
            _show(path, found, first=number == 0)
    if failed:
        raise typer.Exit(2)


def _show(path: Path, found: Mapping[str, Any], first: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from h2gen.cli.console import stdout
    from h2gen.output.metadata_rows import metadata_rows

    console = stdout()
    if not first:
        console.print()
    console.print(Text(printable(str(path)), style="dim"))
    console.print(Text(printable(str(found["settings"]["prompt"])), style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in metadata_rows(found):
        table.add_row(Text(printable(name)[:24], style="dim"), Text(printable(value)))
    console.print(table)
