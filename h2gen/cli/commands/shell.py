"""``h2gen shell``: a model that stays loaded, and a prompt a line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from h2gen.cli import options
from h2gen.errors import H2GenError, SettingError
from h2gen.wording import did_you_mean, printable

if TYPE_CHECKING:
    from rich.console import Console

    from h2gen.cli.render import Renderer
    from h2gen.settings.resolve import Request
    from h2gen.settings.speedup import Goal, GoalResolver

_HELP = """\
A line is a prompt. A prompt that begins with a colon needs two. Commands:
  :set NAME VALUE   change a setting, such as :set steps 12
  :unset NAME       back to what it was at the start
  :show             all settings, and who gave them
  :seed N|random    fix the seed, or have a new one for each picture
  :again            the last prompt once more
  :help             this
  :quit             leave; Ctrl-D does too. Ctrl-C stops a picture."""
_WISHES: dict[str, tuple[type, ...]] = {"speedup": (float,), "fidelity": (float,), "nearest": (bool,)}
"""What can be asked of a profile, and its types."""
_COMMANDS = ("set", "unset", "show", "seed", "again", "help", "quit")


def shell(
    seed: options.Seeds = None,
    size: options.Size = None,
    steps: options.Steps = None,
    solver: options.Solver = None,
    guidance: options.Guidance = None,
    cfg: options.Cfg = None,
    negative: options.Negative = None,
    max_sequence_length: options.MaxSequenceLength = None,
    preset: options.Preset = None,
    tau1: options.Tau1 = None,
    tau2: options.Tau2 = None,
    warmup_steps: options.WarmupSteps = None,
    final_steps: options.FinalSteps = None,
    max_consecutive: options.MaxConsecutive = None,
    forecast: options.Forecast = None,
    plan: options.Plan = None,
    tolerance: options.Tolerance = None,
    budget: options.Budget = None,
    hierarchy: options.Hierarchy = None,
    max_detail_age: options.MaxDetailAge = None,
    pfs: options.Pfs = None,
    no_cache: options.NoCache = False,
    speedup: options.Speedup = None,
    fidelity: options.Fidelity = None,
    nearest: options.Nearest = False,
    model: options.Model = None,
    base: options.Base = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    offload: options.Offload = None,
    out: options.OutFolder = None,
    format: options.Format = None,
    no_metadata: options.NoMetadata = False,
    sidecar: options.Sidecar = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Keep the model loaded and paint a prompt a line. Lines may come from a pipe."""
    given = options.settings_in(locals())
    from h2gen.cli.console import make_console, say
    from h2gen.cli.render import RenderOptions, open_renderer, tell
    from h2gen.output.save import target_of
    from h2gen.settings.resolve import user_defaults
    from h2gen.settings.seeds import parse_seeds
    from h2gen.settings.speedup import Goal, request_for_goal

    console = make_console()
    console.quiet = quiet
    if seed is not None:
        seeds = parse_seeds(seed)
        if len(seeds) > 1:
            raise SettingError(f"seed is {seed}; a shell takes one seed at a time.")
        given["seed"] = seeds[0]
    planned = request_for_goal("-", [("option", given), *user_defaults()], Goal(speedup, fidelity, nearest))
    if target_of(planned.out, planned.format).stem is not None:
        raise SettingError(f"out is {planned.out!r}; a shell needs a folder for its pictures.")
    renderer = open_renderer(planned, console, RenderOptions(None, as_json, verbose, not no_metadata, sidecar))
    tell(planned, console)
    if sys.stdin.isatty():
        say(console, "A prompt makes a picture; :help lists commands, :quit leaves.", "dim")
    given |= {"speedup": speedup, "fidelity": fidelity, "nearest": nearest or None}
    shell = _Shell(renderer, given, console)
    shell.told |= set(planned.notices)
    if not shell.run():
        raise typer.Exit(1)


class _Shell:
    """What lines do: ``given`` is what the shell was started with, ``changed`` what was set since."""

    def __init__(self, renderer: Renderer, given: dict[str, Any], console: Console) -> None:
        self._studio, self._given, self._console = renderer, given, console
        self._changed: dict[str, Any] = {}
        self._last: str | None = None
        self._choosers: dict[Goal, GoalResolver] = {}
        self.told: set[str] = set()
        """Notices that the user has seen."""

    def run(self) -> bool:
        """Read until the end; returns whether everything went well."""
        from h2gen.cli.console import complain

        well = True
        for line in _lines(self._console):
            try:
                if self._obey(line):
                    break
            except H2GenError as error:
                complain(str(error))
                well = False
            except KeyboardInterrupt:
                complain("Stopped; no picture was saved.")
        return well or sys.stdin.isatty()  # who sits there has read what went wrong

    def _obey(self, line: str) -> bool:
        """Do what a line says; returns whether it was the last one."""
        from h2gen.cli.console import say
        from h2gen.cli.render import show_plan

        if not line.startswith(":") or line.startswith("::"):
            self._paint(line[1:] if line.startswith("::") else line)
            return False
        command, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if command in ("quit", "q", "exit"):
            return True
        if command == "help":
            for text in _HELP.splitlines():
                say(self._console, text) if not text.startswith(" ") else self._console.print(text, markup=False)
        elif command == "show":
            plan = self._plan(self._last or "-")
            show_plan(plan, [plan.settings.seed] if plan.resolved["seed"].source != "random" else ["random"], False)
        elif command == "set":
            self._set(*rest.split(" ", 1)) if " " in rest else self._set(rest, "")
        elif command == "unset":
            self._check_name(rest)
            self._changed.pop(rest.replace("-", "_"), None)
        elif command == "seed":
            self._changed.pop("seed", None)
            if rest != "random":
                self._set("seed", rest)
            elif self._given.get("seed") is not None:
                self._given["seed"] = None
        elif command == "again":
            if self._last is None:
                raise SettingError("There is no picture yet to make again; give a prompt.")
            self._paint(self._last)
        else:
            raise SettingError(f"There is no command :{command}{did_you_mean(command, _COMMANDS)} See :help.")
        return False

    def _plan(self, prompt: str, changed: dict[str, Any] | None = None) -> Request:
        from h2gen.settings.resolve import request_from, user_defaults
        from h2gen.settings.speedup import GoalResolver

        given = [("shell", self._changed if changed is None else changed), ("option", self._given)]
        wish = _wish([values for _, values in given])
        layers: list[tuple[str, Mapping[str, Any]]] = [
            (source, {name: v for name, v in values.items() if name not in _WISHES}) for source, values in given
        ]
        layers += user_defaults()
        if not wish:
            return request_from(prompt, layers)
        if wish not in self._choosers:
            self._choosers[wish] = GoalResolver(wish, self._studio.session.checkpoint)
        return self._choosers[wish].plan(prompt, layers)

    def _paint(self, words: str) -> None:
        from h2gen.cli.console import say
        from h2gen.output.save import target_of
        from h2gen.settings.values import clean_prompt

        plan = self._plan(clean_prompt(words))
        for notice in plan.notices:
            if notice not in self.told:
                say(self._console, notice, "dim")
        self.told |= set(plan.notices)
        self._last = plan.settings.prompt
        self._studio.paint(plan.settings, target_of(plan.out, plan.format), plan.preset)

    def _check_name(self, name: str) -> None:
        name = name.replace("-", "_")
        if name in ("model", "base", "device", "dtype", "offload"):
            raise SettingError(f"{name} is what the shell was started with; start another for a different one.")
        if name not in _names():
            raise SettingError(f"There is no setting {printable(name)!r}{did_you_mean(name, _names())}")

    def _set(self, name: str, text: str) -> None:
        """Change a setting, unless the result could not be used."""
        from h2gen.batches.prompts import KEYS
        from h2gen.settings.resolve import CACHE as cache_settings

        self._check_name(name)
        name, text = name.replace("-", "_"), text.strip()
        kinds = {**KEYS, **_WISHES}.get(name, (str,))
        if not text and str not in kinds:
            raise SettingError(f"{name} needs a value, such as :set {name} 1.")
        value: Any = text
        if str not in kinds or name == "seed":
            words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
            try:
                value = words[text.lower()] if bool in kinds else float(text) if float in kinds else int(text)
            except (KeyError, ValueError) as error:
                wanted = "on or off" if bool in kinds else "a number" if float in kinds else "a whole number"
                raise SettingError(f"{name} is {printable(text)!r}; give {wanted}.") from error
        changed = {**self._changed, name: value or None if name == "no_cache" else value}
        if name in ("speedup", "fidelity"):
            changed.pop("fidelity" if name == "speedup" else "speedup", None)
        if name == "no_cache":
            for cached in ("preset", *cache_settings):
                changed.pop(cached, None)
        elif name in ("preset", "tau1", "tau2", "plan", "tolerance"):
            # What decides is what was said last.
            kept = ("tau1", "tau2") if name.startswith("tau") else (name,)
            for other in ("no_cache", "tau1", "tau2", "plan", "tolerance"):
                if other not in kept:
                    changed.pop(other, None)
        self._plan("-", changed)
        self._changed = changed


def _names() -> list[str]:
    """What can be set."""
    from h2gen.batches.prompts import KEYS

    return [*(name for name in KEYS if name not in ("count", "name", "width", "height")), *_WISHES, "out", "format"]


def _wish(given: Sequence[Mapping[str, Any]]) -> Goal:
    """What is asked of a profile: by whoever names a speed or a fidelity last.

    Raises:
        SettingError: it is none that can be granted.
    """
    from h2gen.settings.speedup import Goal

    nearest = next((values["nearest"] for values in given if values.get("nearest") is not None), False)
    for values in given:
        if values.get("speedup") is not None or values.get("fidelity") is not None:
            return Goal(values.get("speedup"), values.get("fidelity"), nearest)
    return Goal(nearest=nearest)


def _lines(console: Console) -> Iterator[str]:
    """Lines that are not blank: typed, with a history, or from a pipe."""
    if not sys.stdin.isatty():
        for raw in sys.stdin.buffer:
            line = raw.decode("utf-8-sig", "replace").strip()
            if line:
                yield line
        return
    with _history():
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
    """A line that is typed; where stdout is not the terminal it is for paths alone."""
    if sys.stdout.isatty():
        return input("h2gen> ")
    print("h2gen> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Arrow keys and a history in the user's data folder, where the system has them; failure costs nothing else."""
    try:
        import readline
    except ImportError:  # Windows: its terminal has a history of its own
        yield
        return
    import platformdirs

    path = Path(platformdirs.user_data_dir("h2gen", appauthor=False)) / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            readline.write_history_file(path)
