"""``h2gen info PICTURE...``: how a picture was made, as it says itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from h2gen.errors import MetadataError
from h2gen.wording import printable


def info(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or the .toml beside one.", metavar="PICTURE...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print an object a picture.")] = False,
) -> None:
    """Show how pictures were made. No model is loaded."""
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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    if not first:
        console.print()
    settings = dict(found["settings"])
    console.print(Text(printable(str(path)), style="dim"))
    console.print(Text(printable(str(settings.pop("prompt"))), style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(settings, found):
        table.add_row(Text(printable(name)[:24], style="dim"), Text(printable(value)))
    console.print(table)


def _rows(settings: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is worth a line, in the words of the command line."""
    model = found["model"]
    yield "model", f"{model['name']}  {str(model.get('content_hash', ''))[:12]}"
    if "base" in model:
        yield "base", str(model["base"])
    yield "size", f"{settings['width']}x{settings['height']}"
    if "preset" in found:
        yield "preset", str(found["preset"])
    for name, value in settings.items():
        if name not in ("width", "height") and value != "":
            yield name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value)
    for name in ("device", "dtype", "offload", "made"):
        if name in found:
            yield name, str(found[name])
    if isinstance(found.get("seconds"), (int, float)):
        yield "seconds", f"{found['seconds']:.2f}"
    cache = found.get("cache")
    if isinstance(cache, dict) and all(isinstance(cache.get(name), int) for name in ("steps", "full", "all_reused")):
        share = cache.get("share")
        blocks = f", {share:.0%} of blocks" if isinstance(share, (int, float)) else ""
        skipped = f", {cache['skipped']} skipped" if isinstance(cache.get("skipped"), int) and cache["skipped"] else ""
        parts = f"{cache['full']} of {cache['steps']} passes full, {cache['all_reused']} all reused{skipped}"
        yield "cache", f"{parts}{blocks}"
    if found.get("uncached") is True:
        yield "uncached", "it came out NaN with the cache, and was made without it"
    if isinstance(found.get("versions"), dict):
        yield "versions", ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    if isinstance(found.get("notes"), dict):
        for name, value in found["notes"].items():
            text = value if isinstance(value, str) else json.dumps(value)
            yield name, text if len(text) <= 200 else text[:200] + "..."
