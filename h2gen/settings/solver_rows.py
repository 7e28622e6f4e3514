"""Rows of the table: how the steps are taken, and what their blocks run with."""

from __future__ import annotations

from h2gen.checks import Rule
from h2gen.models.attention_names import ATTENTIONS, DEFAULT
from h2gen.models.choices import OF_DIFFUSERS, SOLVERS
from h2gen.settings.setting import DETAILS, MAKES, MODEL, Setting, picture_row
from h2gen.settings.shift import ShiftRule

SOLVER = picture_row(
    "solver",
    "own (the model's), unipc, heun (two passes per step), dpm++, lcm.",
    Rule(str, choices=tuple(SOLVERS), aliases={"euler": "own", "default": "own", **OF_DIFFUSERS}),
    section=DETAILS,
    commands=MAKES,
    default="own",
    later=True,
    also="--scheduler",
)
SHIFT = picture_row(
    "shift",
    "Shift of the schedule, such as 3; dynamic: by picture size.",
    ShiftRule(str),
    section=DETAILS,
    commands=(*MAKES, "compare"),
    metavar="SHIFT",
    default="own",
    later=True,
)
ATTENTION = Setting(
    "attention",
    "Attention backend of diffusers: native, flash, sage, xformers, ...",
    Rule(
        str,
        choices=ATTENTIONS,
        aliases={"sdpa": "native", "auto": DEFAULT},
        advice="choose default, native, flex, flash, sage or xformers; docs/speed.md lists the others",
    ),
    MODEL,
    commands=(*MAKES, "compare"),
    default=DEFAULT,
    lasting=True,
    in_picture=True,
    later=True,
)
COMPILE = Setting(
    "compile",
    "Compile the transformer's blocks: a slow start, then faster steps.",
    Rule(bool),
    MODEL,
    switch=True,
    default=False,
    lasting=True,
)
DEVICES = Setting(
    "devices",
    "Make each picture on N devices together.",
    Rule(int, 1, 64),
    MODEL,
    commands=("generate", "replay", "shell"),
    metavar="N",
    default=1,
)
