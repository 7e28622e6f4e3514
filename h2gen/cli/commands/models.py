"""``h2gen models``: list the known models, or print what is known of one, or its folder."""

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
    help="List the known models, or show one.",
    invoke_without_command=True,
)


@app.callback()
def _list(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from h2gen.cli.views.models import print_catalogue

    print_catalogue()


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


@app.command("show", cls=Command)
def show(
    name: Annotated[
        str, typer.Argument(help="An alias, such as tiny.", metavar="NAME", autocompletion=completion.models)
    ],
) -> None:
    """Print a model's defaults, plans published for it, and what the bundled one knows."""
    from dataclasses import asdict

    from rich.table import Table

    from h2gen.cli.console import stdout
    from h2gen.models import CATALOGUE, resolve
    from h2gen.models.vocabulary import vocabulary
    from h2gen.settings.profiles.published import MODELS, WORDS, summary_lines

    checkpoint = resolve(name)
    facts: dict[str, str] = {"model": name}
    entry = CATALOGUE.get(name)
    if entry is not None:
        facts |= {"model": f"{name}: {entry.description}", "repository": entry.repo or "bundled"}
        facts["licence"] = entry.licence
    defaults = asdict(checkpoint.defaults)
    facts["size"] = f"{defaults.pop('width')}x{defaults.pop('height')}"
    del defaults["size_multiple"]
    facts |= {key.replace("_", " "): f"{value:g}" for key, value in defaults.items()}
    if entry is not None and entry.name in MODELS:
        facts["plans"] = f"{'; '.join(summary_lines())}; {WORDS}; --speedup uses them until you have a profile"
    known = vocabulary(checkpoint)
    if known is not None:
        facts["trained at"] = ", ".join(f"{width}x{height}" for width, height in known.shapes)
        facts[f"{len(known.things)} things"] = ", ".join(names[0] for names in known.things)
        facts["also called"] = ", ".join(f"{other} ({names[0]})" for names in known.things for other in names[1:])
        for title in ("colours", "sizes", "numbers", "layouts", "styles", "backgrounds"):
            facts[title] = ("; " if title == "styles" else ", ").join(getattr(known, title))
    console = stdout()
    if not console.is_terminal:  # a table would fill each line with blanks
        for title, text in facts.items():
            console.print(f"{title:20} {text}", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for title, text in facts.items():
        table.add_row(title, text)
    console.print(table)
