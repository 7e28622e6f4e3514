"""All commands, with ``generate`` as the one without a name, and the place where errors become messages."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from h2gen._version import __version__
from h2gen.cli.commands import COMMANDS
from h2gen.cli.commands.generate import generate
from h2gen.errors import H2GenError

DEFAULT = "generate"


class _Sections(TyperCommand):
    """Help in plain text, with one section per panel: typer's own panels take too long to load."""

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
    """Puts ``generate`` before arguments that do not begin with a command, so that ``h2gen "a cat"`` works."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {"--help", "--version", "--install-completion", "--show-completion"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # The options that people look for are those of the command without a name.
        default = self.commands[DEFAULT]
        own = type(ctx)(default, info_name=ctx.info_name, help_option_names=ctx.help_option_names)
        default.format_help(own, formatter)
        formatter.write_paragraph()
        super().format_help(ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["COMMAND [ARGS]..."]


app = typer.Typer(
    cls=_DefaultGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"h2gen {__version__}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="The version.")] = False,
) -> None:
    """Other commands; each has its own --help."""


app.command(DEFAULT, cls=_Sections, hidden=True)(generate)
for _name in COMMANDS:
    _module = import_module(f"h2gen.cli.commands.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name)
    else:
        app.command(_name, cls=_Sections)(getattr(_module, _name))


def _complain(message: str) -> None:
    from h2gen.cli.console import complain

    complain(message)


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        status = app(args=arguments or ["--help"], prog_name="h2gen", standalone_mode=False)
        if status == 130:  # typer has caught the KeyboardInterrupt
            _complain("Stopped; no picture was saved.")
        return status if isinstance(status, int) else 0
    except typer.TyperException as error:  # wrong usage
        _complain(f"{error.format_message().rstrip('.')}. See 'h2gen --help'.")
        return error.exit_code
    except H2GenError as error:
        for line in str(error).splitlines():  # all errors of prompt files are reported at once
            _complain(line)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("Stopped; no picture was saved.")
        return 130
