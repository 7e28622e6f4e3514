"""The part of a prompt that a text encoder does not read, from its tokenizer and its limit."""

from __future__ import annotations

from typing import Any, NamedTuple


class PromptEnd(NamedTuple):
    """The part of a prompt that is cut off, and the number of tokens that the whole prompt would need."""

    text: str
    needed: int


def end_of(tokenizer: Any, prompt: str, limit: int, wrapped: str | None = None) -> PromptEnd:
    """What a tokenizer cuts off a prompt, so that no more than ``limit`` tokens are left.

    Args:
        tokenizer: of transformers.
        prompt: the user's text.
        limit: in tokens, those that the tokenizer adds included.
        wrapped: what the tokenizer gets, if the prompt is wrapped in a chat template.

    Returns:
        An empty text if nothing is cut off.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor of text and images has one for the text
    text = prompt if wrapped is None else wrapped
    has_start = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)  # from the template
    added = 0 if has_start else tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    ids, kept = encoded["input_ids"], max(0, limit - added)
    needed = len(ids) + added
    if needed <= limit:
        return PromptEnd("", needed)
    at_start = tokenizer.truncation_side == "left"
    if not tokenizer.is_fast:
        return PromptEnd(tokenizer.decode(ids[: needed - limit] if at_start else ids[kept:]).strip(), needed)
    start = max(0, text.find(prompt))
    places = encoded["offset_mapping"]
    cut = places[: needed - limit] if at_start else places[kept:]
    return PromptEnd(text[max(start, cut[0][0]) : min(start + len(prompt), cut[-1][1])].strip(), needed)
