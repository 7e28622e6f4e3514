"""What a single value may be: its type, range and choices, checked in one place, with the same wording of errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from h2gen.errors import SettingError
from h2gen.sanitize import SURROGATES
from h2gen.wording import did_you_mean, shown

_KINDS: dict[type, str] = {
    str: "it as text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of texts",
    dict: "a table",
}
_MANY = 8
"""If a value has more choices than this, the error names only the closest one, if any is close."""
_BOOLEANS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Args:
        kind: ``str``, ``int``, ``float`` (whole numbers count too), ``bool``, ``list`` (of text) or ``dict``.
        least, most: the range of a number, both included.
        choices: the texts allowed, in any case (``NF4`` or ``nf4``); any text if empty.
        longest: characters of a text.
        above: a limit of a number that is not itself included.
        advice: what to give instead of a wrong value; made from the rest if it is empty.
        aliases: other names of choices, likewise.
        numbers: whether a whole number counts as text too, such as the 512 of a square.
        unit: what may stand behind a number in text, such as the x of ``3x``.
    """

    kind: type
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    longest: int | None = None
    above: float | None = None
    advice: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    unit: str = ""
    numbers: bool = False

    def check(self, name: str, value: Any) -> Any:
        """The value, checked; as a float or a tuple if the kind is ``float`` or ``list``.

        Args:
            name: what the caller calls it, for the message: a key, an option, a variable.
            value: what was given.

        Raises:
            SettingError: it is of another type, out of range or not among the choices.
        """
        self.check_kind(name, value)
        if self.numbers:
            value = str(value)
        if self.kind in (int, float):
            most = sys.float_info.max if self.most is None and self.kind is float else self.most
            below = self.least is not None and not value >= self.least
            if below or (most is not None and not value <= most) or (self.above is not None and not value > self.above):
                raise self.error(name, value)
            return self.kind(value)
        if self.choices:
            names = {**dict(zip(self.choices, self.choices, strict=True)), **self.aliases}
            found = {each.lower(): choice for each, choice in names.items()}.get(value.lower())
            if found is None:
                raise self.error(name, value)
            value = found
        texts: Iterable[str] = value if self.kind is list else [value] if self.kind is str else ()
        for text in texts:
            if SURROGATES.search(text):
                raise SettingError(f"{name} is not UTF-8 text.")
            if self.longest is not None and len(text) > self.longest:
                raise SettingError(f"{name} has more than {self.longest} characters; shorten it.")
        return tuple(value) if self.kind is list else value

    def check_kind(self, name: str, value: Any) -> None:
        """Check only the type.

        Raises:
            SettingError: it is of another type.
        """
        kinds: Any = (int, float) if self.kind is float else (list, tuple) if self.kind is list else self.kind
        if self.numbers:
            kinds = (kinds, int)
        if (isinstance(value, bool) and self.kind is not bool) or not isinstance(value, kinds):
            raise self.error(name, value)
        if self.kind is list and not all(isinstance(item, str) for item in value):
            raise self.error(name, value)

    def parse(self, name: str, text: str) -> Any:
        """The value of a text, from the environment or typed; its range is not checked.

        Raises:
            SettingError: the text is not a value of this type.
        """
        try:
            if self.kind is bool:
                return _BOOLEANS[text.lower()]
            if self.kind is list:
                return [part.strip() for part in text.split(",")]
            return self.kind(text.strip().removesuffix(self.unit) if self.unit else text)
        except (KeyError, ValueError) as error:
            raise self.error(name, text) from error

    def error(self, name: str, value: Any) -> SettingError:
        """The error for a wrong value: what was given, and what to give instead."""
        if self.choices and isinstance(value, str):
            close = did_you_mean(value, self.choices) if len(self.choices) > _MANY else "."
            advice = f"; {self._advice}." if close == "." else close
            return SettingError(f"{name} {shown(value)} is not supported{advice}")
        return SettingError(f"{name} is {shown(value)}; {self._advice}.")

    @property
    def _advice(self) -> str:
        if self.advice:
            return self.advice
        if self.choices:
            *others, last = self.choices
            return f"choose {', '.join(others)} or {last}"
        what = _KINDS[self.kind]
        if self.least is None and self.most is None:
            return f"give {what}"
        upper = "upwards" if self.most is None else f"to {self.most}"
        return f"give {what} from {self.least} {upper}"
