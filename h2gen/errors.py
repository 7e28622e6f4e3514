"""All errors that h2gen raises on purpose, and its warning about prompts.

A message says what was given, what is wrong with it and what to do next, in one line; the command line prints it
unchanged. ``exit_code`` is the command line's exit status.
"""

from __future__ import annotations

import sys


class PromptWarning(UserWarning):
    """A part of a prompt is not read, or is read as plain words where it was meant otherwise."""


class H2GenError(Exception):
    """The base of all h2gen errors; catch it to catch all of them."""

    exit_code = 1


class UsageError(H2GenError):
    """The input is wrong; nothing was made or written."""

    exit_code = 2


class ArgumentError(UsageError, TypeError):
    """A Python function has no argument of this name."""


class SettingError(UsageError):
    """A setting has a value that cannot be used."""


class PromptFileError(UsageError):
    """Prompt files have errors; the message has one line for each, with file, line number and key."""


class MetadataError(UsageError):
    """A picture has no metadata, or they cannot be used."""


class PresetError(UsageError):
    """A preset is unknown, cannot be read, or has a wrong key or value."""


class ProfileError(UsageError):
    """No profile fits, or one cannot be read or has a wrong key or value."""


class ModelError(UsageError):
    """A checkpoint is unknown, missing, gated, damaged or of the wrong architecture."""


class DeviceError(UsageError):
    """The device does not exist, or cannot compute in the dtype."""


class OutputError(UsageError):
    """The output folder or file cannot be written."""


class CacheError(UsageError):
    """The cache cannot be applied to this model with these settings."""


class RunError(H2GenError):
    """Making a picture failed after it had begun."""


class OutOfMemory(RunError):
    """The device ran out of memory; the message names an option that helps."""


class BadPicture(RunError):
    """The picture is NaN, with the cache and without it."""


class Stopped(H2GenError):
    """Stopped by Ctrl-C or a signal; the message says what is saved."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_docstrings() -> None:
    """Check that Python keeps docstrings. Without them transformers cannot be imported, and our own help is empty.

    Raises:
        UsageError: it was started with -OO.
    """
    if sys.flags.optimize > 1:
        raise UsageError(
            "Python removes docstrings (-OO or PYTHONOPTIMIZE=2), and transformers cannot be loaded without them; use "
            "-O or leave it out."
        )
