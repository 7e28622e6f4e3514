"""``h2gen presets``: list the presets, or print one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from h2gen.cli import completion
from h2gen.cli.help import Command, Group
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.cache.config import CacheConfig

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    help="List the presets, or print one.",
    invoke_without_command=True,
    no_args_is_help=False,
)


@app.callback()
def _list(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from rich.table import Table
    from rich.text import Text

    from h2gen.cache.config import word_of
    from h2gen.cli.console import stdout
    from h2gen.settings import presets

    def thresholds_and_guards(config: CacheConfig) -> tuple[str, str, str]:
        if config.plan:  # it overrides both
            return "-", "-", config.words
        counts = {"warmup": config.warmup_steps, "final": config.final_steps, "max": config.max_consecutive}
        guards = [f"{word} {count}" for word, count in counts.items() if count]
        guards += [word_of(name, value) for name, value in config.policies.items()]
        return f"{config.tau1:g}", f"{config.tau2:g}", ", ".join(guards) or "-"

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("preset", "tau1", "tau2", "guards"):
        table.add_column(title, no_wrap=True)
    table.add_column("purpose")
    for preset in presets.list_presets():
        name = preset.name + (" (default)" if preset.name == presets.DEFAULT else "")
        table.add_row(
            Text(printable(name)),
            *thresholds_and_guards(preset.config),
            Text(printable(preset.description)),
        )
    stdout().print(table)


@app.command("show", cls=Command)
def show(
    name: Annotated[
        str, typer.Argument(help="A preset's name or file.", metavar="NAME", autocompletion=completion.presets)
    ],
) -> Any:
    """Print a preset's file."""
    from h2gen.settings import presets

    preset = presets.load_preset(name)
    for line in preset.path.read_text(encoding="utf-8-sig").splitlines():
        print("".join(char if char.isprintable() else " " for char in line))
