"""Tokenizers of Llama 3, which transformers 5 opens as Llama 2's: all spaces of a prompt would be lost.

Source: https://github.com/huggingface/transformers/issues/45488.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from h2gen.models.defaults import read_config


def is_byte_level(folder: Path) -> bool:
    """Whether a tokenizer's own file says that it works on bytes, as Llama 3's does and Llama 2's does not."""
    before = read_config(folder / "tokenizer.json").get("pre_tokenizer")
    parts = before.get("pretokenizers", [before]) if isinstance(before, dict) else []
    return any(isinstance(part, dict) and part.get("type") == "ByteLevel" for part in parts)


def load_byte_level(folder: Path) -> Any:
    """The tokenizer as its own file describes it, whatever class it names."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
