"""``h2gen shell``: the model stays loaded, and each line is a prompt or a command."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from h2gen.cli import options
from h2gen.errors import H2GenError

if TYPE_CHECKING:
    from rich.console import Console

    from h2gen.generation.render import Renderer
    from h2gen.generation.shell import ShellState


@options.takes_options("shell")
def shell(
    given: options.Given,
    speedup: float | None = None,
    fidelity: float | None = None,
    policy: str = "auto",
    nearest: bool = False,
    no_metadata: bool = False,
    sidecar: bool = False,
    preview: bool = False,
    preview_file: Path | None = None,
    preview_every: int | None = None,
    preview_model: str | None = None,
    as_json: bool = False,
    strict: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> None:
    """Keep the model loaded and make a picture from each line. Lines may come from a pipe."""
    from h2gen.cli.console import make_console, say
    from h2gen.cli.views.picture import PictureView
    from h2gen.cli.views.preview import options_for
    from h2gen.generation.render import RenderOptions, open_renderer
    from h2gen.generation.shell import ShellState, start_request
    from h2gen.settings.model_options import check_strict
    from h2gen.settings.speedup import Goal

    console = make_console()
    console.quiet = quiet
    request, given = start_request(given, Goal(speedup, fidelity, policy, nearest))
    if strict:
        check_strict(request.ignored)
    previews = options_for(console, request.settings, preview, preview_file, preview_every, preview_model)
    view = PictureView(console, as_json=as_json, verbose=verbose, preview=preview)
    render_options = RenderOptions(None, not no_metadata, sidecar, strict=strict, preview=previews)
    renderer = open_renderer(request, render_options, view)
    if sys.stdin.isatty():
        say(console, "Type a prompt to make a picture; :help lists commands, :quit leaves.", "dim")
    if not _run(ShellState(given, request.checkpoint), renderer, console, set(request.notices)):
        raise typer.Exit(1)


def _run(state: ShellState, renderer: Renderer, console: Console, shown: set[str]) -> bool:
    """Carry out lines until the end; returns whether all of them succeeded. ``shown`` are notices shown already."""
    from h2gen.cli.console import complain

    succeeded = True
    for line in _lines(console):
        try:
            if _obey(line, state, renderer, console, shown):
                break
        except H2GenError as error:
            complain(str(error))
            succeeded = False
        except KeyboardInterrupt:
            complain("Stopped; nothing was saved.")
    return succeeded or sys.stdin.isatty()  # a user at the terminal has read the errors


def _obey(line: str, state: ShellState, renderer: Renderer, console: Console, shown: set[str]) -> bool:
    """Carry out one line; returns whether it ends the shell."""
    from h2gen.cli.console import say
    from h2gen.cli.views.request import show_notices, show_request
    from h2gen.generation.shell import HELP, Action
    from h2gen.output.save import target_of
    from h2gen.wording import printable

    step = state.read(line)
    request = step.request
    if step.action is Action.HELP:
        for text in HELP.splitlines():
            say(console, text) if not text.startswith(" ") else console.print(text, markup=False)
    elif step.action is Action.SHOW and request is not None:
        random = request.resolved["seed"].source == "random"
        prompt = None if step.prompt is None else (step.prompt, f"last {request.settings.noun}")
        seed = "a new one each time" if random else request.settings.seed
        show_request(request, [seed], prompt=prompt, whole=step.whole)
    elif step.action is Action.CHANGED and request is not None:
        found = request.resolved.get(step.changed)
        value = state.value(step.changed) if found is None else found.value
        if step.changed == "seed" and found is not None and found.source == "random":
            value = "a new one each time"
        if isinstance(value, float):
            value = f"{value:g}"
        if isinstance(value, tuple):  # files
            value = ", ".join(printable(str(file)) for file in value) or "none"
        text = "not set" if value in (None, "") else "on" if value is True else "off" if value is False else value
        say(console, f"{step.changed.replace('_', '-')} is now {text}", "dim")
        show_notices([notice for notice in request.notices if notice not in shown], console)
        shown |= set(request.notices)
    elif step.action is Action.RENDER and request is not None:
        show_notices([notice for notice in request.notices if notice not in shown], console)
        shown |= set(request.notices)
        renderer.check_options(request)
        target = target_of(request.out, request.format, video=request.settings.frames is not None)
        renderer.render([request.settings], [target], request.preset)
    return step.action is Action.QUIT


def _lines(console: Console) -> Iterator[str]:
    """Lines that are not blank: typed, with a history, or from a pipe."""
    from h2gen.cli.console import say

    if not sys.stdin.isatty():
        empty = True
        for raw in sys.stdin.buffer:
            line = raw.decode("utf-8-sig", "replace").strip()
            if line:
                empty = False
                yield line
        if empty:
            say(console, "There are no prompts on stdin; pipe some to the shell, or run it in a terminal.", "yellow")
        return
    with _history():
        _complete()
        while True:
            try:
                line = _ask().strip()
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                print(file=sys.stderr)
                continue
            if line:
                yield line


def _ask() -> str:
    """A typed line. If stdout is not the terminal, the prompt goes to stderr: stdout is for paths only."""
    if sys.stdout.isatty():
        return input("h2gen> ")
    print("h2gen> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _complete() -> None:
    """Tab completes commands, settings and values, if the system has readline."""
    try:
        import readline
    except ImportError:
        return
    from h2gen.cli.completion import in_shell

    def complete(_word: str, number: int) -> str | None:
        found = in_shell(readline.get_line_buffer()[: readline.get_endidx()])
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Arrow keys and a history file in the user's data folder, if the system has readline; failures are ignored."""
    try:
        import readline
    except ImportError:  # Windows, whose terminal has its own history
        yield
        return
    from h2gen.files import user_folder

    with contextlib.suppress(OSError):
        readline.read_history_file(user_folder("data") / "history")
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            path = user_folder("data") / "history"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            readline.write_history_file(path)
