"""The commands put together, ``generate`` as the one that needs no name, and the boundary where errors become lines."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException
from typer.core import TyperCommand, TyperGroup

from h2gen._version import __version__
from h2gen.cli.commands import batch, bench, compare, frontier, info, models, presets, replay, shell, tune
from h2gen.cli.commands.generate import generate
from h2gen.errors import H2GenError

DEFAULT = "generate"


class _Sections(TyperCommand):
    """Help in plain text, a section for each panel: typer's own panels take as long to load as all the rest."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = getattr(parameter, "rich_help_panel", None)
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(title or default, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class _DefaultGroup(TyperGroup):
    """Puts ``generate`` in front of arguments that name no command, so that ``h2gen "a cat"`` works."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {"--help", "--version", "--install-completion", "--show-completion"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # The options that people look for are those of the command without a name.
        self.commands[DEFAULT].format_help(type(ctx)(self.commands[DEFAULT], info_name=ctx.info_name), formatter)
        formatter.write_paragraph()
        super().format_help(ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["COMMAND [ARGS]..."]


app = typer.Typer(
    cls=_DefaultGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"h2gen {__version__}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="The version.")] = False,
) -> None:
    """Other commands; each has a --help of its own."""


app.command(DEFAULT, cls=_Sections, hidden=True)(generate)
app.add_typer(presets.app, name="presets")
app.add_typer(models.app, name="models")
app.command("batch", cls=_Sections)(batch.batch)
app.command("info")(info.info)
app.command("replay", cls=_Sections)(replay.replay)
app.command("shell", cls=_Sections)(shell.shell)
app.command("compare", cls=_Sections)(compare.compare)
app.command("frontier", cls=_Sections)(frontier.frontier)
app.command("tune", cls=_Sections)(tune.tune)
app.command("bench")(bench.bench)


def _complain(message: str) -> None:
    from h2gen.cli.console import complain

    complain(message)


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        status = app(args=arguments or ["--help"], prog_name="h2gen", standalone_mode=False)
        sys.stdout.flush()
        if status == 130:  # typer has caught the KeyboardInterrupt
            _complain("Stopped; no picture was saved.")
        return status if isinstance(status, int) else 0
    except ClickException as error:
        _complain(f"{error.format_message().rstrip('.')}. See 'h2gen --help'.")
        return error.exit_code
    except H2GenError as error:
        for line in str(error).splitlines():  # of prompt files all mistakes are told at once
            _complain(line)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("Stopped; no picture was saved.")
        return 130
    except BrokenPipeError:
        sys.stdout = None  # whoever read our paths has gone; do not complain at exit
        return 1
