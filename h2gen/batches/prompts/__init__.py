"""Prompt files: text, YAML and JSON Lines become entries; all errors are reported at once, before a model is loaded."""

from h2gen.batches.prompts.entries import KEYS, RUN_WIDE, Entry, Reading
from h2gen.batches.prompts.files import read_prompts

__all__ = ["KEYS", "RUN_WIDE", "Entry", "Reading", "read_prompts"]
