"""Warnings that a user should see once per cache, not at every step."""

from __future__ import annotations

import warnings


class WarnOnce:
    """Issues a RuntimeWarning for each message, only the first time."""

    def __init__(self) -> None:
        self._messages: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self._messages:
            self._messages.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)
