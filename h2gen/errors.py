"""Every error that h2gen raises on purpose.

A message says what was given, what is wrong with it and what to do next, in one line: the command line prints it as it
is. ``exit_code`` is what the command line ends with.
"""

from __future__ import annotations


class H2GenError(Exception):
    """The base of all errors of h2gen. Catch this one to catch them all."""

    exit_code = 1


class UsageError(H2GenError):
    """The caller's input is wrong; nothing was made and nothing was written."""

    exit_code = 2


class SettingError(UsageError):
    """A setting has a value that cannot be used."""


class PromptFileError(UsageError):
    """Prompt files hold mistakes; the message names each in a line of its own, with file, line and key."""


class MetadataError(UsageError):
    """A picture does not say how it was made, or what it says cannot be used."""


class PresetError(UsageError):
    """A preset is unknown, cannot be read, or holds a wrong key or value."""


class ProfileError(UsageError):
    """There is no profile for what is asked, or one cannot be read, or holds a wrong key or value."""


class ModelError(UsageError):
    """A checkpoint is unknown, missing, gated, damaged or of the wrong architecture."""


class DeviceError(UsageError):
    """The device is not there, or cannot compute in the wanted dtype."""


class OutputError(UsageError):
    """The output folder or file cannot be written."""


class CacheError(UsageError):
    """The cache cannot be applied to this model with these settings."""


class RunError(H2GenError):
    """Making the picture failed after it had begun."""


class OutOfMemory(RunError):
    """The device ran out of memory; the message names the option that would help."""


class BadPicture(RunError):
    """The picture holds NaN, with the cache and without it."""


class Stopped(H2GenError):
    """The user stopped it, by Ctrl-C or a signal; the message says what is saved."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
