"""Options of commands: those of the table of settings, and those that a command declares for itself."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer

from h2gen.checks import Rule
from h2gen.cli.completion import values_of
from h2gen.errors import SettingError, UsageError
from h2gen.settings.synonyms import option_in
from h2gen.settings.table import BATCH, BY_NAME, MEASURING, OF_THIS_MACHINE, SECTIONS, TABLE, Setting
from h2gen.wording import printable

Given = dict[str, Any]
"""The settings given on the command line, by name; None if not given."""

__all__ = ["BATCH", "MEASURING", "Given", "PromptKey", "Prompts", "Report", "option", "takes_options"]


def option(
    *names: str, help: str, panel: str, metavar: str | None = None, min: int | None = None, max: int | None = None
) -> Any:
    """An option without its default in the help: it comes from the configuration, a preset or the model."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, min=min, max=max, show_default=False)


def takes_options(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command its options from the table.

    Parameters of the function that are annotated as options of typer are the command's own. A parameter named like a
    row of the table is that row's option, with the function's type and default. ``given`` receives all other settings
    that the table has for the command, as a dictionary.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(function, eval_str=True).parameters
        own = [each for each in declared.values() if get_origin(each.annotation) is Annotated]
        named = {name for name in declared if name != "given"} - {each.name for each in own}
        gathered = [
            row.name
            for row in TABLE
            if "given" in declared and row.is_setting and command in row.commands and row.name not in declared
        ]
        if unknown := named - BY_NAME.keys():
            raise TypeError(f"{command}: the table of settings has no {', '.join(sorted(unknown))}.")

        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in gathered}
            typed = {name: value for name, value in {**given, **values}.items() if value is not None}
            try:
                function(**({"given": given} if "given" in declared else {}), **values)
            except UsageError as error:
                error.args = (_with_origin(_as_typed(str(error), typed), typed, command),)
                raise

        parameters = [_own(each) for each in own]
        for row in TABLE:
            if row.name in named:
                each = declared[row.name]
                parameters.append(_parameter(row, command, each.annotation, each.default))
            elif row.name in gathered:
                parameters.append(_parameter(row, command, (row.typed or row.rule.kind) | None, None))
        parameters.sort(key=_place)
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__annotations__ = {}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def without_options(prompt: str, command: str) -> str:
    """The prompt that was typed.

    Raises:
        SettingError: it has an option inside its quotes, as other programs read them there.
    """
    if found := option_in(prompt, [row.name for row in TABLE if command in row.commands]):
        option, name, value = found
        typed, ours = (printable(f"{each} {value}".rstrip()) for each in (option, BY_NAME[name].option))
        raise SettingError(f"{typed} is inside the quotes of the prompt; put it after them, as {ours}.")
    return prompt


def _as_typed(message: str, typed: Mapping[str, Any]) -> str:
    """A message that begins with the name of a setting, with the option that the user has typed."""
    name, _, rest = message.partition(" ")
    if name not in typed or not rest.startswith(("is ", "has ")):
        return message
    return f"{BY_NAME[name].option if name in BY_NAME else '--' + name.replace('_', '-')} {rest}"


def _with_origin(message: str, typed: Mapping[str, Any], command: str) -> str:
    """A message about what the user has not typed, with the variable or the file that it comes from.

    It says nothing of what a prompt file may have set.
    """
    from h2gen.settings.layers import merge  # not for --help
    from h2gen.settings.user_defaults import origin_of, user_defaults

    if re.match(r".+:\d+: ", message):  # about an entry of a prompt file
        return message
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the command has given them
            mine = merge(user_defaults())
    except UsageError:  # this is the message, which names it
        return message
    of_command = [
        row.name for row in TABLE if command in row.commands and (command == "generate" or not row.per_prompt)
    ]
    origins = []
    for name in OF_THIS_MACHINE if command == "replay" else of_command:
        if name not in mine or name in typed:
            continue
        option, value, origin = BY_NAME[name].option, mine[name].value, origin_of(name, mine[name].source)
        texts = {value, os.path.dirname(value)} - {"", *map(str, typed.values())} if name in _QUOTED else ()
        if origin.lower() not in message.lower() and (
            re.search(rf"{option}(?![\w-])", message) or any(repr(printable(text)) in message for text in texts)
        ):
            origins.append(f"The value of {option} comes from {origin}.")
    return ("\n" if "\n" in message else " ").join([message, *origins])


_QUOTED = ("model", "base", "preset", "device", "out")
"""Settings whose values messages quote without their name."""


def _place(parameter: inspect.Parameter) -> int:
    """Where an option stands in the help: by its section. Arguments come first."""
    panel = getattr(get_args(parameter.annotation)[1], "rich_help_panel", None)
    return SECTIONS.index(panel) if panel in SECTIONS else -1


def _own(parameter: inspect.Parameter) -> inspect.Parameter:
    """An option that a command declares, with our messages for numbers instead of typer's."""
    kind, made = get_args(parameter.annotation)
    (kind,) = set(get_args(kind) or (kind,)) - {NoneType} if get_origin(kind) is not list else (list,)
    if isinstance(made, typer.models.OptionInfo) and kind is not bool:
        made.metavar = made.metavar or _METAVARS.get(kind, "TEXT")
        if kind in (int, float):
            rule, made.min, made.max = Rule(kind, made.min, made.max), None, None
            made.parser = _parser(rule, f"--{parameter.name.replace('_', '-')}")
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _parameter(row: Setting, command: str, kind: Any, default: Any) -> inspect.Parameter:
    flag = f"{row.option}/--no-{row.option[2:]}" if row.switch else row.option
    names = tuple(each for each in (flag, row.also, row.short) if each)
    made = option(*names, help=row.helps.get(command, row.help), panel=row.section, metavar=row.metavar)
    if row.rule.kind is not bool:
        made.metavar = row.metavar or ("NAME" if row.rule.choices else _METAVARS.get(row.rule.kind, "TEXT"))
        made.autocompletion = values_of(row.name)
    if row.name == "seed":
        made.parser = _seed
    elif row.rule.kind in (int, float, str):
        made.parser = _parser(row.rule, row.option)
    kind = list[str] | None if kind == list | None else kind
    return inspect.Parameter(
        row.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made]
    )


_METAVARS: dict[Any, str] = {int: "N", float: "NUMBER", Path: "PATH"}


def _parser(rule: Rule, name: str) -> Callable[[Any], Any]:
    """Reads a value, and checks it; an error names the option."""
    return lambda text: rule.check(name, rule.parse(name, text) if isinstance(text, str) else text)


def _seed(text: str) -> str:
    from h2gen.settings.seeds import parse_seeds  # not for --help: it loads hashlib and secrets

    parse_seeds(text, "--seed")
    return text


Prompts = Annotated[
    list[str] | None,
    option("--prompts", help="A .txt, .yaml, .jsonl, .json or .csv file.", panel=MEASURING, metavar="FILE"),
]
PromptKey = Annotated[
    str | None,
    option("--prompt-key", help="The key of the prompt in JSON or CSV.", panel=MEASURING, metavar="KEY"),
]
Report = Annotated[
    Path | None, option("--report", help="Write an HTML report into this folder.", panel=MEASURING, metavar="DIR")
]
