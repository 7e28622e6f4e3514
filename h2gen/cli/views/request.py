"""``--dry-run``: settings, their values and where they came from; and notices shown before pictures are made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.cli.console import say, stdout
from h2gen.files import user_folder
from h2gen.models.attention_names import ANYWHERE, DEFAULT
from h2gen.settings.layers import Resolved
from h2gen.settings.resolve import BUNDLED_NOTICE
from h2gen.settings.values import FILES, OFF
from h2gen.wording import printable

if TYPE_CHECKING:
    from rich.console import Console

    from h2gen.settings.resolve import Request

_MOST_PATHS = 10
_UNCHANGED = asdict(OFF)
_OF_USER = ("option", "shell", "environment", "configuration")


def show_notices(notices: Iterable[str], console: Console) -> None:
    """Lines that the user should see first."""
    for notice in notices:
        show_notice(notice, console)


def show_notice(notice: str, console: Console) -> None:
    """Show one line; the one about the bundled model only once, and only in a terminal."""
    if notice != BUNDLED_NOTICE or (console.is_terminal and not console.quiet and _first_time()):
        say(console, notice, "dim")


def loading_of(request: Request, pictures: int = 1, preview_model: Path | None = None) -> list[str]:
    """For ``--dry-run``: lines about what would be downloaded and how the model would be loaded here; of a bundled one
    only with a ``--memory``.

    Args:
        request: resolved settings.
        pictures: in a batch.
        preview_model: the folder of a tiny autoencoder, if one makes previews.

    Raises:
        UsageError: it cannot be loaded so.
    """
    from h2gen.models.check_loading import check_index, check_loading
    from h2gen.models.facts import download_line
    from h2gen.models.fit_here import lines_here
    from h2gen.settings.workload import work_of

    if request.settings.attention not in (DEFAULT, *ANYWHERE):
        from h2gen.models.attention import check_attention

        check_attention(request.settings.attention, request.load.device, request.load.dtype)
    if request.checkpoint.kind == "bundled" and request.load.memory in ("auto", "none"):
        check_loading(request.checkpoint, request.load)  # without torch, even where there may be a GPU
        return []
    check_index(request.checkpoint)
    work = work_of(request.settings, request.checkpoint, pictures, preview_model=preview_model)
    download = download_line(request.checkpoint)
    return [*([] if download is None else [download]), *lines_here(request.checkpoint, request.load, work)]


def _first_time() -> bool:
    try:
        mark = user_folder("cache") / "greeted"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # if that cannot be recorded, show it each time
        pass
    return True


def show_request(
    request: Request,
    seeds: Sequence[int | str],
    as_json: bool = False,
    *,
    prompt: tuple[str, str] | None = None,
    seed_source: str = "",
    whole: bool = False,
    paths: Sequence[Path] = (),
    overwrite: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the settings, and where they came from.

    Args:
        request: resolved settings.
        seeds: shown instead of the request's own seed.
        as_json: as one JSON object.
        prompt: the prompt and where it came from; None if there is none, or several.
        seed_source: where the seeds came from, if not from where the request's own did.
        whole: also settings of the cache that are off; JSON always has them.
        paths: of the pictures.
        overwrite: existing files will be replaced.
        more: further keys of the JSON object.
    """
    source = seed_source or request.resolved["seed"].source
    resolved = {**request.resolved, "seed": Resolved(",".join(map(str, seeds)), source)}
    if as_json:
        files = {name: [file.to_json() for file in getattr(request.settings, name)] for name in FILES}
        settings = {
            name: {"value": files.get(name, item.value), "source": item.source}
            for name, item in sorted(resolved.items())
        }
        found = {"prompt": None if prompt is None else prompt[0], "paths": [str(path) for path in paths]}
        given = {name: value for name, value in found.items() if value}
        if request.settings.published_plan:
            given["published_plan"] = request.settings.published_plan
        print(json.dumps({**given, "settings": settings, **(more or {})}))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold", no_wrap=title == "setting")
    if prompt is not None:
        table.add_row("prompt", Text(printable(prompt[0])), prompt[1])
    for name, item in resolved.items():
        if not whole and name in _UNCHANGED and item.value == _UNCHANGED[name] and item.source not in _OF_USER:
            continue
        many = item.value if isinstance(item.value, (list, tuple)) else [item.value]
        texts = [str(each).removesuffix(".0") if isinstance(each, float) else str(each) for each in many]
        value = ", ".join(texts) if texts else "none"
        table.add_row(name.replace("_", "-"), Text(printable(value)), Text(item.source))
    for path in paths[:_MOST_PATHS]:
        taken = "will be replaced" if overwrite else "a number will be added"
        table.add_row("writes", Text(printable(str(path))), f"exists; {taken}" if os.path.lexists(path) else "")
    if len(paths) > _MOST_PATHS:
        table.add_row("", f"and {len(paths) - _MOST_PATHS} more")
    out = stdout()
    out.print(table)
    if request.settings.published_plan:  # a row so long would pad all others
        out.print(Text(f"The plan is {printable(request.settings.published_plan)}."), soft_wrap=not out.is_terminal)
