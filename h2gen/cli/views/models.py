"""``h2gen models``: the table of known models, as wide as the terminal allows."""

from __future__ import annotations

from h2gen.cli.console import stdout
from h2gen.models.entries import CATALOGUE, CatalogueEntry
from h2gen.wording import count

_WIDE = 110
"""Columns of a terminal from which on repositories and whole licences are shown."""


def print_catalogue() -> None:
    """The models that have an alias, one per line."""
    from rich.table import Table

    from h2gen.models.hub import is_downloaded

    console = stdout()
    wide = console.width >= _WIDE
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("alias", no_wrap=True)
    if wide:
        table.add_column("repository", no_wrap=True)
    table.add_column("params", no_wrap=True, justify="right")
    table.add_column("download", no_wrap=True, justify="right")
    table.add_column("licence")
    for entry in CATALOGUE.values():
        table.add_row(
            entry.name,
            *([entry.repo or "bundled"] if wide else []),
            count(entry.parameters),
            "-" if entry.repo is None else "downloaded" if is_downloaded(entry) else f"{entry.download_gb:g} GB",
            _licence(entry, wide) + (", gated" if entry.gated else ""),
        )
    console.print(table)


def _licence(entry: CatalogueEntry, whole: bool) -> str:
    return "non-commercial" if not whole and "Non-Commercial" in entry.licence else entry.licence
