"""``h2gen presets``: list the presets, or print one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from h2gen.cli import completion
from h2gen.cli.help import Command, Group
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.settings.presets import Preset

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    help="List the presets, or print one.",
    invoke_without_command=True,
    no_args_is_help=False,
)

_NARROW, _NARROWEST = 80, 60
"""Columns of a terminal below which settings are left out, and below which PSNR is too."""


@app.callback()
def _list(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None:
        return
    from rich.table import Table
    from rich.text import Text

    from h2gen.cli.console import make_console, say, stdout
    from h2gen.settings import presets

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    found = [(preset, _columns(preset)) for preset in presets.list_presets()]
    width = stdout().width
    shown = _columns(found[0][0]) if width >= _NARROW else ("speed", "PSNR") if width >= _NARROWEST else ("speed",)
    titles = [title for title in shown if any(columns[title] for _, columns in found)]
    table.add_column("preset", no_wrap=True)
    for title in titles:
        table.add_column(title, no_wrap=title != "guards", justify="left" if title == "guards" else "right")
    table.add_column("purpose")
    for preset, columns in found:
        name = preset.name + (" (default)" if preset.name == presets.DEFAULT else "")
        cells = [printable(columns[title]) or "-" for title in titles]
        table.add_row(*(Text(cell) for cell in (printable(name), *cells, printable(preset.description))))
    stdout().print(table)
    from h2gen.settings.profiles.published import WORDS, models_with_plans

    known = models_with_plans()
    models = " or ".join(f"--model {name}" for name in known)
    lines = (
        "Speed-ups and PSNR were measured on the bundled model. To find settings for another: h2gen tune --model NAME",
        f"With {models}, --speedup uses a plan that is {WORDS}. To see the plans: h2gen models show {known[0]}",
    )
    for line in lines:
        say(make_console(), line, "dim")


def _columns(preset: Preset) -> dict[str, str]:
    """What decides, what limits it, and what was measured; empty where there is nothing."""
    from h2gen.cache.config import word_of

    config, figures = preset.config, preset.figures
    counts = {"warmup": config.warmup_steps, "final": config.final_steps, "max": config.max_consecutive}
    guards = [f"{word} {count}" for word, count in counts.items() if count and not config.plan_alone]
    if config.plan:
        guards.insert(0, replace(config, tolerance=0.0).words)
    else:
        guards += [word_of(name, value) for name, value in config.policies.items() if name != "tolerance"]
    psnr = figures.get("psnr_mean", figures.get("psnr"))
    return {
        "tolerance": f"{config.tolerance:g}" if config.tolerance else "",
        "tau1": f"{config.tau1:g}" if config.tau1 else "",
        "tau2": f"{config.tau2:g}" if config.tau2 else "",
        "guards": ", ".join(guards),
        "speed": f"{figures['speedup']:.2f}x" if isinstance(figures.get("speedup"), int | float) else "",
        "PSNR": f"{psnr:.1f} dB" if isinstance(psnr, int | float) else "",
    }


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
