"""``h2gen batch FILE...``: one picture per prompt of prompt files; can be stopped and continued."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from h2gen.cli import options
from h2gen.settings.table import BATCH
from h2gen.wording import plural, printable

if TYPE_CHECKING:
    from h2gen.batches.api import PreparedBatch


@options.takes_options("batch")
def batch(
    given: options.Given,
    files: Annotated[
        list[str], typer.Argument(help="Prompts as .txt, .yaml, .jsonl, .json or .csv; - is stdin.", metavar="FILE...")
    ],
    prompt_key: Annotated[
        str | None,
        options.option("--prompt-key", help="The key of the prompt in JSON or CSV.", panel=BATCH, metavar="KEY"),
    ] = None,
    shard: Annotated[
        str | None, options.option("--shard", help="Make only this part of the jobs: 3/16.", panel=BATCH, metavar="I/N")
    ] = None,
    redo: Annotated[bool, options.option("--redo", help="Make existing pictures again.", panel=BATCH)] = False,
    gpus: Annotated[
        str | None, options.option("--gpus", help="all, or 0,1: one process per GPU.", panel=BATCH, metavar="LIST")
    ] = None,
    ray: Annotated[
        str | None,
        options.option(
            "--ray", help="A Ray cluster; auto starts Ray on this machine.", panel=BATCH, metavar="HOST:PORT"
        ),
    ] = None,
    ray_slots: Annotated[
        int | None,
        options.option("--ray-slots", help="Number of Ray workers; by default one per GPU or machine.", panel=BATCH),
    ] = None,
    batch_size: int = 1,
    speedup: float | None = None,
    fidelity: float | None = None,
    policy: str = "auto",
    nearest: bool = False,
    no_metadata: bool = False,
    sidecar: bool = False,
    as_json: bool = False,
    strict: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    dry_run: bool = False,
) -> None:
    """Make one picture per prompt in FILE. Run it again to make only what is missing.

    Example: h2gen batch prompts.txt --out pictures --preset quality
    """
    from h2gen.batches.api import prepare
    from h2gen.cli.console import make_console, route_warnings
    from h2gen.cli.views.batch import BatchView
    from h2gen.cli.views.request import loading_of, show_notices

    console = make_console()
    console.quiet = quiet
    view = BatchView(console, as_json=as_json)
    prepared = prepare(
        files=files,
        prompt_key=prompt_key,
        shard=shard,
        redo=redo,
        gpus=gpus,
        ray=ray,
        ray_slots=ray_slots,
        verbose=verbose,
        batch_size=batch_size,
        no_metadata=no_metadata,
        sidecar=sidecar,
        speedup=speedup,
        fidelity=fidelity,
        policy=policy,
        nearest=nearest,
        strict=strict,
        observer=view,
        **given,
    )
    if dry_run:
        here = [] if ray is not None else loading_of(prepared.request, batch_size)
        show_notices([*prepared.notices, *here], console)
        _show(prepared, as_json)
        return
    route_warnings(console, verbose)
    with view:
        result = prepared.run(view)
    if result.failed:
        raise typer.Exit(1)


def _show(prepared: PreparedBatch, as_json: bool) -> None:
    """What would be made, one line per picture."""
    from rich.text import Text

    from h2gen.cli.console import stdout

    lines = stdout()
    for planned in prepared.planned():
        job, path, settings = planned.job, planned.path, planned.job.settings
        if as_json:
            place = {"name": planned.name, "path": None if path is None else str(path)}
            print(json.dumps({"id": planned.id, "source": job.source, **place, "settings": settings.to_json()}))
        else:
            state = "to make" if path is None else "exists"
            size = f"{settings.width}x{settings.height}, {plural(settings.steps, 'step')}"
            text = f"{state:7}  {planned.name}  seed {settings.seed}, {size}  {printable(settings.title)}"
            lines.print(Text(text, no_wrap=True, overflow="ellipsis"), soft_wrap=not lines.is_terminal)
