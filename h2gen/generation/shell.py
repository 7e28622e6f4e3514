"""The state of ``h2gen shell``: what each line means, and the settings that lines have changed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from h2gen.cache.policies.plan import check_plan
from h2gen.errors import SettingError
from h2gen.models.load_options import LOAD_OPTIONS
from h2gen.settings.resolve import CACHE, IGNORED_BY_PLAN, Request, request_from
from h2gen.settings.seeds import parse_seeds
from h2gen.settings.speedup import GOAL, Goal, GoalResolver, request_for_goal
from h2gen.settings.synonyms import meant, option_in
from h2gen.settings.table import BY_NAME, TABLE
from h2gen.settings.user_defaults import user_defaults
from h2gen.settings.values import clean_prompt
from h2gen.wording import did_you_mean, printable

if TYPE_CHECKING:
    from h2gen.models.catalogue import Checkpoint

HELP = """\
A line is a prompt. To begin a prompt with a colon, type two colons. Commands:
  :set NAME VALUE   change a setting, such as :set steps 12; :set alone lists them
  :unset NAME       restore its initial value
  :show             all settings and where they come from
  :seed N|random    fix the seed, or use a new one for each picture
  :again            repeat the last prompt
  ""                use no prompt, only the pictures of :set redux
  :help             this text
  :quit             leave; so does Ctrl-D. Ctrl-C stops a picture."""

COMMANDS = ("set", "unset", "show", "seed", "again", "help", "quit")
_BARE = ("quit", "exit", "q", "help", "?", "show", "again")
"""Lines that are commands even without the colon: hardly anybody wants a picture of them."""
NAMES = tuple(row.name for row in TABLE if row.in_shell)
"""The settings that can be changed."""
_PREVIEWS = ("preview", "preview_file", "preview_every", "preview_model")
_FIXED = ("model", "base", "vae", "text_encoder", *LOAD_OPTIONS, *_PREVIEWS)


def start_request(given: Mapping[str, Any], goal: Goal) -> tuple[Request, dict[str, Any]]:
    """Resolve the settings that a shell starts with.

    Args:
        given: options by name; None if not given.
        goal: a speed-up or fidelity that a profile has to reach.

    Returns:
        The request for loading the model, and the options for ``ShellState``.

    Raises:
        UsageError: something cannot be used.
    """
    given = dict(given)
    if given.get("seed") is not None:
        seeds = parse_seeds(given["seed"], "--seed")
        if seeds is not None and len(seeds) > 1:
            raise SettingError(f"--seed is {given['seed']!r}; the shell takes one seed at a time.")
        given["seed"] = None if seeds is None else seeds[0]
    request = request_for_goal("-", [("option", given), *user_defaults()], goal)
    check_folder(request, "--out")
    goals = {"speedup": goal.speedup, "fidelity": goal.fidelity, "policy": goal.policy, "nearest": goal.nearest or None}
    return request, {**given, **goals}


def check_folder(request: Request, called: str = "out") -> None:
    """Check that a request's pictures go into a folder.

    Raises:
        SettingError: they would all go into one file.
        OutputError: the folder cannot be written to.
    """
    from h2gen.output.save import target_of

    if target_of(request.out, request.format, video=request.settings.frames is not None).stem is not None:
        raise SettingError(f"{called} is {request.out!r}; the shell needs a folder for its pictures.")


def _check_options(line: str) -> None:
    """Check that a prompt has no options of the command line in it, and no command whose colon was forgotten.

    Raises:
        SettingError: it has; the message says what to type instead.
    """
    first, _, rest = line.partition(" ")
    if first == "set" and rest.partition(" ")[0].replace("-", "_") in NAMES:
        raise SettingError(f"To change a setting, begin with a colon: :{printable(line)}")
    if found := option_in(line, NAMES):
        _, name, value = found
        shown = printable(f":set {name.replace('_', '-')} {value}".rstrip())
        raise SettingError(f"The shell takes no options in a prompt; type {shown} first, then the prompt alone.")


class Action(Enum):
    """What to do after a line."""

    NOTHING = "nothing"
    RENDER = "render"  #: make the request's picture
    SHOW = "show"  #: show the request's settings
    CHANGED = "changed"  #: a setting has a new value
    HELP = "help"
    QUIT = "quit"


@dataclass(frozen=True)
class Step:
    """What a line asks for.

    Args:
        action: what to do.
        request: of ``RENDER``, ``SHOW`` and ``CHANGED``.
        prompt: of ``SHOW``: the last one, or None.
        changed: of ``CHANGED``: a setting, which the request has or which a profile needs.
        whole: of ``SHOW``: all settings.
    """

    action: Action
    request: Request | None = None
    prompt: str | None = None
    changed: str = ""
    whole: bool = False


class ShellState:
    """The settings of a shell.

    Args:
        given: options that the shell was started with, by name.
        checkpoint: of the model that is loaded; None if no profile is needed.
    """

    def __init__(self, given: Mapping[str, Any], checkpoint: Checkpoint | None = None) -> None:
        self._given, self._checkpoint = dict(given), checkpoint
        self._changed: dict[str, Any] = {}
        self._last: str | None = None
        self._resolvers: dict[Goal, GoalResolver] = {}

    def read(self, line: str) -> Step:
        """Carry out the part of a line that needs no model and no terminal.

        Raises:
            H2GenError: the line cannot be used; the settings stay as they were.
        """
        if line.strip().lower() in _BARE:
            line = f":{line.strip().lower()}"
        if not line.startswith(":") or line.startswith("::"):
            _check_options(line)
            return self._render(line[1:] if line.startswith("::") else line)
        command, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if command in ("quit", "q", "exit"):
            return Step(Action.QUIT)
        if command in ("help", "?"):
            return Step(Action.HELP)
        if command == "show" or (command == "set" and not rest):
            request = self._request(self._last or "-")
            return Step(Action.SHOW, request, prompt=self._last, whole=command == "set")
        if command == "again":
            if self._last is None:
                noun = self._request("-").settings.noun
                raise SettingError(f"There is no {noun} yet to make again; give a prompt.")
            return self._render(self._last)
        if command == "set":
            name, _, value = rest.partition(" ")
            name = self._check_name(name)
            self._set(name, value)
        elif command == "unset":
            name = self._check_name(rest)
            # Settings that only say how to reach a goal go with it.
            gone = (name, "policy", "nearest") if name in ("speedup", "fidelity") else (name,)
            changed = {key: value for key, value in self._changed.items() if key not in gone}
            self._request("-", changed)
            self._changed = changed
        elif command == "seed":
            name = "seed"
            self._seed(rest)
        else:
            raise SettingError(f"There is no command :{command}{did_you_mean(command, COMMANDS)} See :help.")
        return Step(Action.CHANGED, self._request(self._last or "-"), changed=name)

    def value(self, name: str) -> Any:
        """What was given for a setting that no request has, such as a speed-up; None if nothing was."""
        return self._changed.get(name, self._given.get(name))

    def _render(self, text: str) -> Step:
        empty = text.strip() in ('""', "''")
        request = self._request("" if empty else clean_prompt(text, may_be_empty=True))
        self._last = request.settings.prompt
        return Step(Action.RENDER, request)

    def _request(self, prompt: str, changed: Mapping[str, Any] | None = None) -> Request:
        given = [("shell", self._changed if changed is None else changed), ("option", self._given)]
        goal = _goal([values for _, values in given])
        layers: list[tuple[str, Mapping[str, Any]]] = [
            (source, {name: value for name, value in values.items() if name not in GOAL}) for source, values in given
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the shell has given them when it began
            layers += user_defaults()
        if not goal:
            return request_from(prompt, layers)
        if goal not in self._resolvers:
            assert self._checkpoint is not None
            self._resolvers[goal] = GoalResolver(goal, self._checkpoint)
        return self._resolvers[goal].request(prompt, layers)

    def _seed(self, text: str) -> None:
        self._changed.pop("seed", None)
        if text != "random":
            self._set("seed", text)
        elif self._given.get("seed") is not None:
            self._given["seed"] = None

    def _check_name(self, name: str) -> str:
        name = name.replace("-", "_")
        if name in _FIXED:
            raise SettingError(f"{name.replace('_', '-')} cannot be changed in a running shell; start a new one.")
        if name in NAMES:
            return name
        other = meant(name, NAMES)
        hint = f"; use {other}." if other else did_you_mean(name, NAMES)
        raise SettingError(f"There is no setting {printable(name)!r}{hint}")

    def _set(self, name: str, text: str) -> None:
        """Change a setting, unless the result would be invalid."""
        value = _value(name, text.strip())
        changed = {**self._changed, name: value or None if name == "no_cache" else value}
        if name in ("speedup", "fidelity"):
            changed.pop("fidelity" if name == "speedup" else "speedup", None)
        if name == "no_cache":
            for other in ("preset", *CACHE):
                changed.pop(other, None)
        elif name in ("preset", "tau1", "tau2", "plan", "tolerance"):
            # These exclude each other: the latest wins. But a tolerance is added to a plan of only F and S.
            kept = ("tau1", "tau2") if name.startswith("tau") else (name,)
            if name == "tolerance" and {*check_plan(changed.get("plan") or "")} <= {*"FS"}:
                kept = ("plan", "tolerance")
            for other in (
                "no_cache",
                "tau1",
                "tau2",
                "plan",
                "tolerance",
                *(IGNORED_BY_PLAN if name == "plan" else ()),
            ):
                if other not in kept:
                    changed.pop(other, None)
        check_folder(self._request("-", changed))
        self._changed = changed


def _value(name: str, text: str) -> Any:
    """A setting's value from text; its range is checked together with all other settings."""
    if not text and BY_NAME[name].rule.kind is not str:
        raise SettingError(f"{name} needs a value, such as :set {name} 1.")
    return BY_NAME[name].parse(text)


def _goal(given: Sequence[Mapping[str, Any]]) -> Goal:
    """The speed-up or fidelity asked for, by the first of ``given`` that names one.

    Raises:
        SettingError: it cannot be reached by any profile.
    """
    nearest = next((values["nearest"] for values in given if values.get("nearest") is not None), False)
    policy = next((values["policy"] for values in given if values.get("policy") is not None), "auto")
    for values in given:
        if values.get("speedup") is not None or values.get("fidelity") is not None:
            return Goal(values.get("speedup"), values.get("fidelity"), policy, nearest)
    return Goal(policy=policy, nearest=nearest)
