"""``--dry-run``: every setting with its value and where it came from; and notices shown before pictures are made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from h2gen.cli.console import say, stdout
from h2gen.wording import printable

if TYPE_CHECKING:
    from rich.console import Console

    from h2gen.settings.resolve import Request


def show_notices(notices: Iterable[str], console: Console) -> None:
    """Lines that the user should see first."""
    for notice in notices:
        say(console, notice, "dim")


def show_request(
    request: Request, seeds: Sequence[int | str], as_json: bool = False, prompt_source: str = "option"
) -> None:
    """Print every setting, and where it came from.

    Args:
        request: resolved settings.
        seeds: shown instead of the request's own seed.
        as_json: as one JSON object.
        prompt_source: where the prompt came from.
    """
    seed = replace(request.resolved["seed"], value=",".join(map(str, seeds)))
    resolved = {**request.resolved, "seed": seed}
    if as_json:
        settings = {name: {"value": item.value, "source": item.source} for name, item in sorted(resolved.items())}
        print(json.dumps({"prompt": request.settings.prompt, "settings": settings}))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for title in ("setting", "value", "from"):
        table.add_column(title)
    table.add_row("prompt", Text(printable(request.settings.prompt)), prompt_source)
    for name, item in resolved.items():
        table.add_row(name.replace("_", "-"), Text(printable(str(item.value))), Text(item.source))
    stdout().print(table)
