"""What ``--help`` prints, and commands that explain wrong usage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer import TyperException
from typer.core import CompletionItem, TyperCommand, TyperGroup  # type: ignore[attr-defined]

from h2gen.cli import hints
from h2gen.errors import UsageError
from h2gen.settings.table import BY_NAME, CACHE

SHORT = """\
h2gen makes pictures and videos with FLUX and other models, faster with H2-Cache.

  h2gen "a cat"               a picture made by the small model that ships with h2gen
  h2gen "a cat" --model dev   a picture made by FLUX.1 [dev], which is downloaded first
  h2gen batch prompts.txt     one picture per line of a file

  h2gen help                  all commands and options
  h2gen help COMMAND          the options of one command"""
"""What plain ``h2gen`` prints."""
_HELP = "Show the options of a command."


def default_of(parameter: Any, command: str | None) -> str:
    """The default of a command's option, for the help; empty if there is none to show."""
    row = BY_NAME.get(parameter.name)
    if parameter.default not in (None, False, ""):
        return str(parameter.default)
    return row.otherwise_in(command) if row is not None and row.help == parameter.help else ""


def write_options(parameters: Iterable[Any], ctx: Any, formatter: Any) -> None:
    """One section per panel, in plain text: typer's own panels take too long to load."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            sections.setdefault("Arguments", []).append((_name(parameter), parameter.help or ""))
            continue
        title = getattr(parameter, "rich_help_panel", None) or "Options"
        record = parameter.get_help_record(ctx)
        if record is not None:
            default = default_of(parameter, ctx.command.name)
            shown = f"  [default: {default}]" if default and title != CACHE else ""
            sections.setdefault(title, []).append((record[0], record[1] + shown))
    for title, records in sections.items():
        origin = "picture" if ctx.command.name == "replay" else "preset"
        with formatter.section(f"{title} (default: the {origin}'s)" if title == CACHE else title):
            formatter.write_dl(records)


def _write_commands(group: TyperGroup, formatter: Any, *more: tuple[str, str]) -> None:
    rows = [(name, each.get_short_help_str()) for name, each in group.commands.items() if not each.hidden]
    with formatter.section("Commands"):
        formatter.write_dl([*rows, *more])


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _first_sentence(text: str | None) -> str:
    whole = " ".join((text or "").split("\n\n")[0].split())
    return whole.partition(". ")[0].rstrip(".") + "." if whole else ""


class Command(TyperCommand):
    """A command with help in sections, the most used options first, that explains surplus arguments."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [each for each in self.params if each.param_type_name == "argument"]
        return ["[OPTIONS]", *(_name(each) if each.required else f"[{_name(each)}]" for each in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_options(self.get_params(ctx), ctx, formatter)

    def get_short_help_str(self, limit: int = 0) -> str:
        return _first_sentence(self.help)  # never cut

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if (instead := hints.one_dash(args, self)) and not ctx.resilient_parsing:
            raise UsageError(f"{instead} See '{hints.path_of(ctx)} --help'.")
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, args)
        except TyperException as error:
            if getattr(error, "ctx", None) is None:  # so it is if an option lacks its value
                error.ctx = ctx  # type: ignore[attr-defined]
            raise
        if rest and not ctx.resilient_parsing:
            raise UsageError(hints.too_many(rest, ctx))
        return rest


class Group(TyperGroup):
    """A group of commands; arguments that begin with none of them go to ``show``."""

    @property
    def fallback(self) -> Command:
        return self.commands["show"]  # type: ignore[return-value]

    def get_short_help_str(self, limit: int = 0) -> str:
        return _first_sentence(self.help)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[COMMAND] [NAME]"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in ("list", "ls"):  # is what the group does without a command
            args = args[1:]
        elif args and args[0] not in self.commands and not args[0].startswith("-"):
            if (instead := hints.other_tools(args[0], ctx)) and not ctx.resilient_parsing:
                raise UsageError(instead)
            args = [str(self.fallback.name), *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_commands(self, formatter)
        write_options(self.get_params(ctx), ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            (argument,) = (each for each in self.fallback.params if each.param_type_name == "argument")
            found += argument.shell_complete(ctx, incomplete)
        return found


class MainGroup(TyperGroup):
    """Puts ``generate`` before arguments that do not begin with a command, so that ``h2gen "a cat"`` works."""

    fallback = "generate"
    _own = ("--help", "-h", "--version", "--install-completion", "--show-completion")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] == "help":
            args = [*args[1:], "--help"]
            if args[0] not in (*self.commands, *self._own):
                raise UsageError(hints.no_command(args[0]))
        if args and args[0] not in (*self.commands, *self._own):
            before = args[: args.index("--")] if "--" in args else args
            instead = hints.other_tools(args[0], ctx)
            if {"--help", "-h"} & set(before):
                args = ["--help"]
            elif instead is not None and not ctx.resilient_parsing:
                raise UsageError(instead)
            else:
                args = [self.fallback, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        default = self.commands[self.fallback]
        formatter.write_usage(ctx.command_path, "[OPTIONS] PROMPT")
        formatter.write_usage(ctx.command_path, "COMMAND ...", prefix="       ")
        default.format_help_text(ctx, formatter)
        _write_commands(self, formatter, ("help COMMAND", _HELP))
        options = [each for each in default.params if each.param_type_name == "option"]
        write_options([*options, *self.get_params(ctx)], ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):  # an option before the prompt
            names = {item.value for item in found}
            default = self.commands[self.fallback]
            own = type(ctx)(default, info_name=self.fallback, parent=ctx, resilient_parsing=True)
            found += [item for item in default.shell_complete(own, incomplete) if item.value not in names]
        elif "help".startswith(incomplete):
            found.append(CompletionItem("help", help=_HELP))
        return found
