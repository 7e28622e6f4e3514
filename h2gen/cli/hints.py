"""What wrong usage probably meant: unknown options, commands of other tools, prompts without quotes."""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Any

import typer

from h2gen.cli.commands import COMMANDS
from h2gen.settings.synonyms import meant
from h2gen.wording import did_you_mean, listed, printable

_SERVER = "h2gen has no server or web page; 'h2gen shell' keeps the model loaded and reads prompts from a pipe."
_LEAVE_OUT = 'A picture needs no command: h2gen "a cat".'
_DOWNLOAD = (
    "A model is downloaded when you first make a picture with it; 'h2gen models' lists them, "
    "'h2gen models path dev' prints where one is."
)
_ACCOUNT = "For models that need an account, run 'hf auth login' or set HF_TOKEN."
_OTHER_TOOLS = {
    **dict.fromkeys(["serve", "server", "api", "web", "webui", "ui", "gui", "app", "launch", "start"], _SERVER),
    **dict.fromkeys(["download", "pull", "fetch", "install", "add", "get"], _DOWNLOAD),
    **dict.fromkeys(["login", "logout", "auth"], _ACCOUNT),
    **dict.fromkeys(["list", "ls"], "'h2gen models' lists the models, and 'h2gen presets' the presets."),
    **dict.fromkeys(
        ["config", "configure", "settings", "set", "setup", "init"],
        "Settings can be kept in config.toml or H2GEN_... variables, see docs/options.md; "
        "'h2gen \"a cat\" --dry-run' shows them.",
    ),
    **dict.fromkeys(
        ["doctor", "diagnose", "env", "status", "check", "debug"],
        "'h2gen \"a cat\" --dry-run -v' shows all settings, and 'h2gen bench' measures this machine.",
    ),
    "version": "'h2gen --version' prints the version.",
    **dict.fromkeys(
        ["update", "upgrade", "uninstall", "remove"],
        "h2gen is a Python package: pip installs, upgrades and removes it.",
    ),
    **dict.fromkeys(
        ["run", "gen", "create", "make", "paint", "draw", "imagine", "txt2img", "t2i", "text2image", "predict"],
        _LEAVE_OUT,
    ),
    **dict.fromkeys(
        ["edit", "img2img", "i2i", "inpaint", "outpaint"],
        "Give the picture with --image, and what changes with --mask: h2gen PROMPT --image FILE",
    ),
    **dict.fromkeys(["quit", "exit"], "Nothing is running; :quit leaves 'h2gen shell'."),
}
"""What to do instead of a command that other tools have, and h2gen does not."""

_PIPELINE = "in Python, set it up on a pipeline of your own and use h2gen.h2_cache(pipe)"
_STRENGTH = ("strength", "image-strength", "denoise", "denoising-strength")
"""Other programs' names for the strength of an input picture."""
_NOT_YET = {
    **dict.fromkeys(["ip-adapter"], _PIPELINE),
    **dict.fromkeys(["port", "host", "listen", "share", "serve"], "'h2gen shell' reads prompts from a pipe"),
    **dict.fromkeys(["upscale", "upscaler", "hires", "hires-fix", "open", "show", "eta", "style", "clip-skip"], ""),
}
"""Options that people try and that h2gen does not have, each with an alternative, or an empty text."""
_CLOSE = 0.75
"""The least similarity of a misspelled option to the one that was meant."""


def other_tools(word: str, context: Any) -> str | None:
    """The message for a command that only other tools have; None if the word is not one."""
    if word not in _OTHER_TOOLS:
        return None
    said = f"There is no command {word!r}. {_OTHER_TOOLS[word]}"
    return f"{said} To use the word as a prompt: h2gen -- {word}" if context.parent is None else said


def one_dash(arguments: list[str], command: Any) -> str | None:
    """The message for ``-model``, which would be read as ``-m odel``; None if all long options have two dashes."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    known = {option[1:] for option in _options(command).values() if option.startswith("--")}
    wrong = next((each for each in options if each.partition("=")[0] in known), None)
    return None if wrong is None else f"There is no option {wrong}; use -{wrong}."


def no_command(word: str) -> str:
    """The message for ``h2gen help WORD``, if it is not a command."""
    return f"There is no command {printable(word)!r}{did_you_mean(word, COMMANDS)} See 'h2gen --help'."


def explained(error: typer.TyperException) -> str:
    """The message for wrong usage that typer has found, with the command whose help says more."""
    context: Any = getattr(error, "ctx", None)
    if context is None:
        return f"{error.format_message().rstrip('.')}. See 'h2gen --help'."
    message = error.format_message().rstrip(".")
    parameter: Any = getattr(error, "param", None)
    if hasattr(error, "possibilities"):
        message = _unknown_option(error.option_name, context)  # type: ignore[attr-defined]
    elif parameter is not None and not error.message:
        message = f"{parameter.metavar or parameter.name} is missing: {parameter.help.rstrip('.')}"
    end = "" if message.endswith("?") else "."
    return f"{message}{end} See '{path_of(context)} --help'."


def too_many(words: list[str], context: Any) -> str:
    """The message for arguments that a command does not take."""
    path, prompt = path_of(context), context.params.get("prompt")
    if prompt is None:
        return f"'{path}' does not take {shlex.quote(printable(words[0]))}. See '{path} --help'."
    close = did_you_mean(prompt, COMMANDS)
    if context.info_name == "generate" and " " not in prompt and close != ".":
        return (
            f'There is no command {printable(prompt)!r}{close} A prompt of several words needs quotes: {path} "a cat"'
        )
    if context.params.get("preview") and len(words) == 1 and re.fullmatch(r"\S+\.\w+", words[0]):
        return f"--preview takes no file; use --preview-file {shlex.quote(printable(words[0]))}. See '{path} --help'."
    whole = " ".join([prompt, *words])
    plain = all(char.isalnum() or char in " ,.-" for char in whole)
    return f"Put the prompt in quotes: {path} " + (f'"{whole}"' if plain else shlex.quote(printable(whole)))


def path_of(context: Any) -> str:
    """A command as the user types it."""
    return str(context.command_path).removesuffix(" generate")


def _options(command: Any) -> dict[str, str]:
    """The long options of a command by the names of their settings."""
    return {each.name: each.opts[0] for each in command.params if each.param_type_name == "option"}


def _unknown_option(option: str, context: Any) -> str:
    name, shown = option.lstrip("-"), printable(option)
    known = _options(context.command)
    said = f"There is no option {shown}"
    if "prompt_option" in known and meant(name) == "prompt":
        return f"{said}; use --prompt"
    found = meant(name, tuple(known))
    if found == "size" and meant(name) != "size":
        return f"{said}; use --size WIDTHxHEIGHT, such as --size 1024x768"
    if found is not None:
        return f"{said}; use {known[found]}"
    if name.lower().replace("_", "-") in _STRENGTH:
        return f"{said}; put the number after the picture: --image FILE:0.6"
    other = _NOT_YET.get(name.lower().replace("_", "-"))
    if other is not None:
        return f"There is no {shown} yet" + (f"; {other}" if other else "")
    others = _owners(context.find_root().command, option)
    if others:
        some = [*map(repr, others[:2]), *(["other commands"] if len(others) > 2 else [])]
        return f"{said} here; it belongs to {listed(some)}"
    close = difflib.get_close_matches(option, known.values(), n=1, cutoff=_CLOSE)
    return f"{said}; did you mean {close[0]}?" if close else said


def _owners(command: Any, option: str, path: str = "h2gen") -> list[str]:
    """The commands that have an option, this one and those below it, as the user types them."""
    found = [path.removesuffix(" generate")] if option in _options(command).values() else []
    for name, each in getattr(command, "commands", {}).items():
        found += _owners(each, option, f"{path} {name}")
    return found
