"""All commands, with ``generate`` as the one without a name, and the place where errors become messages."""

from __future__ import annotations

import os
import re
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer

from h2gen._version import __version__
from h2gen.cli.commands import COMMANDS
from h2gen.cli.commands.generate import generate
from h2gen.cli.help import SHORT, Command, MainGroup
from h2gen.cli.hints import explained
from h2gen.errors import H2GenError, check_docstrings
from h2gen.settings.table import TABLE

app = typer.Typer(
    cls=MainGroup,
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


app.command("generate", cls=Command, hidden=True)(generate)
for _name in COMMANDS:
    _module = import_module(f"h2gen.cli.commands.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name)
    else:
        app.command(_name, cls=Command)(getattr(_module, _name))


def _complain(message: str) -> None:
    from h2gen.cli.console import complain
    from h2gen.generation.interrupt import interrupts_ignored

    with interrupts_ignored():
        complain(message)


def _warn(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> None:
    """Show a warning of ours before a command routes them all to its console."""
    if category is RuntimeWarning:
        from h2gen.cli.console import make_console, say

        say(make_console(), str(message), "yellow")


def _as_called(message: str, arguments: list[str]) -> str:
    """The message with an option's other name, if that is the one that was typed."""
    typed = {argument.partition("=")[0] for argument in arguments}
    for row in TABLE:
        if row.also and row.also in typed and row.option not in typed:
            message = re.sub(rf"(?<![\w/-]){row.option}(?![\w.-])", row.also, message)
    return message


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    warnings.showwarning = _warn
    try:
        check_docstrings()
        if not arguments and "_H2GEN_COMPLETE" not in os.environ:
            print(SHORT)
            return 0
        status = app(args=arguments, prog_name="h2gen", standalone_mode=False)
        if status == 130:  # typer has caught the KeyboardInterrupt
            _complain("Stopped; nothing was saved.")
        return status if isinstance(status, int) else 0
    except typer.TyperException as error:  # wrong usage
        _complain(explained(error))
        return error.exit_code
    except H2GenError as error:
        for line in _as_called(str(error), arguments).splitlines():  # all errors of prompt files are reported at once
            _complain(line)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("Stopped; nothing was saved.")
        return 130
