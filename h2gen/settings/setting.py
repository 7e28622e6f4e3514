"""A row of the table of settings, and the sections and commands that rows name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from h2gen.cache.config import RULES
from h2gen.checks import Rule
from h2gen.settings.inputs import FileRule

BATCH, MEASURING, PICTURE, SPEED, DETAILS = "Batch", "Measuring", "Picture", "Speed", "Picture details"
MODEL, OUTPUT, CACHE = "Model", "Output", "Cache"
SECTIONS = (BATCH, MEASURING, PICTURE, SPEED, DETAILS, MODEL, OUTPUT, CACHE)
"""Sections of the help, in its order: what is used most comes first."""

MAKES = ("generate", "batch", "replay", "shell")
MEASURES = ("compare", "frontier", "tune")
ALL = (*MAKES, *MEASURES)

OF_THIS_MACHINE = ("device", "devices", "offload", "memory", "compile", "out", "format")
"""Where to compute and write: replay takes these from here, and all else from the picture."""


@dataclass(frozen=True)
class Setting:
    """A row of the table: an option of the command line, and for a setting all other places where it can be given.

    Args:
        name: with underscores; the option has dashes.
        help: one line of ``--help``.
        rule: what it may be.
        section: of the help, one of ``SECTIONS``.
        commands: those that have the option.
        short: its short option, such as ``-n``.
        metavar: what the help shows for its value, if the type does not say enough.
        flag: its long option, if it differs from the name.
        also: another name of its long option.
        switch: the option has a ``--no-`` form too.
        typed: the type of the option, if it is not the rule's: ``--seed 1,5-8`` is text.
        helps: other help for some commands.
        label: what messages call it, if not by its name.
        default: its value if none is given; None if it must come from the model or the user.
        lasting: it can be set permanently, in the configuration and as ``H2GEN_NAME``.
        per_prompt: a prompt file can set it for each prompt.
        in_shell: ``:set`` changes it.
        in_picture: it determines the picture: a field of ``Settings`` or ``CacheConfig``, part of metadata and job ids.
        later: it came after the first version. If metadata lack it, it has its default, at which
            job ids leave it out, so that an older batch can be continued.
        is_setting: False for an option that only says how a command behaves.
    """

    name: str
    help: str
    rule: Rule
    section: str
    commands: tuple[str, ...] = ALL
    short: str | None = None
    metavar: str | None = None
    flag: str = ""
    also: str = ""
    switch: bool = False
    typed: type | None = None
    helps: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    default: Any = None
    lasting: bool = False
    per_prompt: bool = False
    in_shell: bool = False
    in_picture: bool = False
    later: bool = False
    is_setting: bool = True

    @property
    def option(self) -> str:
        """``--max-sequence-length``."""
        return self.flag or f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """``H2GEN_MAX_SEQUENCE_LENGTH``."""
        return f"H2GEN_{self.name.upper()}"

    @property
    def otherwise(self) -> str:
        """What the help and the docs call its value if none is given; empty if there is none."""
        if self.of_cache:
            return "the preset's"
        if self.name == "seed":
            return "random"
        of_model = self.name == "size" or (self.per_prompt and self.in_picture and self.default is None)
        return "the model's" if of_model else str(self.default or "")

    def otherwise_in(self, command: str | None) -> str:
        """``otherwise``, in the help of a command: replay takes most settings from the picture."""
        recorded = command == "replay" and self.name not in OF_THIS_MACHINE
        return "the picture's" if recorded and self.otherwise else self.otherwise

    @property
    def files(self) -> FileRule:
        """The rule of a setting that is ``of_files``."""
        assert isinstance(self.rule, FileRule)
        return self.rule

    @property
    def of_files(self) -> bool:
        """Whether its values are files that the picture is made from, as ``InputFile``s."""
        return isinstance(self.rule, FileRule)

    @property
    def of_cache(self) -> bool:
        """Whether it is a field of ``CacheConfig``."""
        return self.name in RULES

    def check(self, value: Any, called: str = "") -> Any:
        """The value, checked against the rule.

        Args:
            value: what was given.
            called: what the caller calls the setting, for the message.

        Raises:
            SettingError: it cannot be used.
        """
        return self.rule.check(called or self.label or self.name, value)

    def beside(self, folder: Path, value: Any) -> Any:
        """A checked value that a file in ``folder`` gives: relative paths of input files begin there."""
        return self.rule.beside(folder, self.name, value) if isinstance(self.rule, FileRule) else value

    def parse(self, text: str, called: str = "") -> Any:
        """The value of a text, from the environment or typed in the shell; its range is not checked.

        Raises:
            SettingError: the text is not a value of the type.
        """
        return self.rule.parse(called or self.name, text)


def picture_row(name: str, help: str, rule: Rule, **more: Any) -> Setting:
    """A row of the picture itself that can be given everywhere; ``more`` are further arguments of ``Setting``."""
    places = {"lasting": True, "per_prompt": True, "in_shell": True, "in_picture": True}
    return Setting(name, help, rule, **{"section": PICTURE, **places, **more})
