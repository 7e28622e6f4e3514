"""``h2gen models check NAME``: verify a model's files, and say how to mend what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from h2gen.cli import completion
from h2gen.wording import printable


def check(
    name: Annotated[
        str,
        typer.Argument(help="An alias, a repository, a folder or a file.", metavar="NAME",
                       autocompletion=completion.models),
    ],
    base: Annotated[
        str | None, typer.Option("--base", help="Model that supplies the rest of a single file.", metavar="NAME")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the hashes, which take the longest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:  # fmt: skip
    """Verify a model's files, hashes, licence and disk space; offline."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    from rich.table import Table
    from rich.text import Text

    from h2gen.cli.console import make_console, stdout
    from h2gen.models.check import check_model

    console = make_console()
    columns = (TextColumn("checking {task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("files", total=None)

        def on_read(file: Path, done: int, size: int) -> None:
            progress.update(task, description=printable(file.name), completed=done, total=size)

        found = check_model(name, base, hashes=not quick, on_read=on_read)
    if as_json:
        print(json.dumps({**asdict(found), "ok": found.ok}))
    else:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for _ in range(2):
            table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for line in found.lines:
            mark = Text("ok", style="green") if line.ok else Text("wrong", style="bold red")
            fix = f"; {line.fix}" if line.fix else ""
            table.add_row(Text(printable(line.subject)), mark, Text(printable(line.text + fix)))
        stdout().print(table)
    if not found.ok:
        raise typer.Exit(1)
