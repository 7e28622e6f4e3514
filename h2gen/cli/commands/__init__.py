"""One file per command."""

COMMANDS = ("batch", "info", "replay", "shell", "compare", "frontier", "tune", "bench", "presets", "models")
"""All except ``generate``, which needs no name, in the order of the help."""
