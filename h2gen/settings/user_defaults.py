"""What the user has set permanently: the configuration file, and ``H2GEN_...`` in the environment."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from h2gen.errors import SettingError
from h2gen.files import user_folder
from h2gen.settings.layers import Layers
from h2gen.settings.synonyms import meant_or_close, suggestion
from h2gen.settings.table import BY_NAME, TABLE
from h2gen.toml import read_toml
from h2gen.wording import printable, shown

USER_DEFAULTS = {row.name: row for row in TABLE if row.lasting}
"""The rows of the table that can be set permanently, by name."""


def config_file() -> Path:
    """The user's configuration.

    Raises:
        OSError: the user has no home folder.
    """
    return user_folder("config") / "config.toml"


def origin_of(name: str, source: str) -> str:
    """Where a user default comes from, for messages: its variable, or the file.

    Args:
        name: of the setting.
        source: ``environment`` or ``configuration``.
    """
    return USER_DEFAULTS[name].variable if source == "environment" else f"the configuration {str(config_file())!r}"


def called(name: str, source: str) -> str:
    """As ``origin_of``, for the beginning of a message about the value; with the key if there is a file."""
    origin = origin_of(name, source)
    return origin if source == "environment" else f"T{origin[1:]}: {name}"


def user_defaults(environ: Mapping[str, str] = os.environ) -> Layers:
    """What the user has set permanently, the environment before the configuration.

    A configuration that the user has no permission to read is ignored, with a warning.

    Raises:
        SettingError: a value cannot be used, or the configuration is damaged.
    """
    return [("environment", _environment(environ)), ("configuration", _configuration())]


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    for variable in environ:
        name = variable.removeprefix("H2GEN_").lower()
        if not variable.startswith("H2GEN_") or name in USER_DEFAULTS:
            continue
        if name in BY_NAME:
            instead = f": {BY_NAME[name].option} cannot be set permanently."
        elif meant := meant_or_close(name, USER_DEFAULTS):
            instead = f"; did you mean {USER_DEFAULTS[meant].variable}?"
        else:  # it may belong to another program
            continue
        warnings.warn(f"{printable(variable)} has no effect{instead}", RuntimeWarning, stacklevel=2)
    texts = {name: environ.get(row.variable) for name, row in USER_DEFAULTS.items()}
    values = {
        name: USER_DEFAULTS[name].parse(text, USER_DEFAULTS[name].variable) for name, text in texts.items() if text
    }
    return {name: USER_DEFAULTS[name].check(value, USER_DEFAULTS[name].variable) for name, value in values.items()}


def _configuration() -> dict[str, Any]:
    try:
        path = config_file()
    except OSError:
        return {}
    where = f"The configuration {str(path)!r}"
    try:
        data = read_toml(path)
    except ValueError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return {}
        if isinstance(error.__cause__, PermissionError):
            warnings.warn(f"{where} cannot be read; using the defaults.", RuntimeWarning, stacklevel=3)
            return {}
        raise SettingError(f"{where} cannot be used: {error}.") from error
    for key in data:
        if key not in USER_DEFAULTS:
            raise SettingError(
                f"{where} has an unknown key {shown(key)}{suggestion(key, USER_DEFAULTS)} "
                f"Known keys: {', '.join(USER_DEFAULTS)}."
            )
    values = {key: USER_DEFAULTS[key].check(value, called(key, "configuration")) for key, value in data.items()}
    return {key: USER_DEFAULTS[key].beside(path.parent, value) for key, value in values.items()}
