"""Names of arguments: an unknown one is refused, and the right one is named."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from h2gen.errors import ArgumentError
from h2gen.wording import did_you_mean

_F = TypeVar("_F", bound=Callable[..., Any])
_C = TypeVar("_C", bound=type)

Suggest = Callable[[str, Collection[str]], str | None]
"""Called with an unknown name and the known ones; returns the one that was probably meant."""


def check_names(function: str, given: Iterable[str], known: Collection[str], suggest: Suggest | None = None) -> None:
    """Check the names of keyword arguments.

    Args:
        function: its name, for the message.
        given: names.
        known: names that it has.
        suggest: finds the name that is meant; by default the one with the most similar spelling.

    Raises:
        ArgumentError: it has no argument of one of the names.
    """
    for name in given:
        if name not in known:
            found = None if suggest is None else suggest(name, known)
            hint = did_you_mean(name, known) if found is None else f"; did you mean {found!r}?"
            raise ArgumentError(f"{function}() has no argument {name!r}{hint}")


def names_checked(function: str, suggest: Suggest | None = None) -> Callable[[_F], _F]:
    """A decorator: calls with an unknown keyword are refused by ``check_names``. For functions without ``**``."""

    def decorate(what: _F) -> _F:
        known = tuple(inspect.signature(what).parameters)

        @functools.wraps(what)
        def run(*arguments: Any, **named: Any) -> Any:
            check_names(function, named, known, suggest)
            return what(*arguments, **named)

        return run  # type: ignore[return-value]

    return decorate


def fields_checked(suggest: Suggest | None = None) -> Callable[[_C], _C]:
    """As ``names_checked``, for the fields of a dataclass."""

    def decorate(what: _C) -> _C:
        what.__init__ = names_checked(what.__name__, suggest)(what.__init__)  # type: ignore[misc]
        return what

    return decorate
