"""How a picture was made, as rows of text for ``h2gen info``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from h2gen.settings.table import BY_NAME


def metadata_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The name and value of each row after the prompt, named like the command line's options.

    Args:
        found: ``Metadata.everything``. Texts in it come from a file: make the rows printable before showing them.
    """
    settings = {name: value for name, value in found["settings"].items() if name != "prompt"}
    model = found["model"]
    yield "model", f"{model['name']}  {str(model.get('content_hash', ''))[:12]}"
    if "base" in model:
        yield "base", str(model["base"])
    yield "size", f"{settings['width']}x{settings['height']}"
    if "preset" in found:
        yield "preset", str(found["preset"])
    for name, value in settings.items():
        row = BY_NAME.get(name)
        if row is not None and row.later and value == row.default:
            continue  # as in pictures that are older than the setting
        if name not in ("width", "height") and value != "":
            yield name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value)
    if "published_plan" in found:
        yield "published plan", str(found["published_plan"])
    for name in ("device", "dtype", "offload", "made"):
        if name in found:
            yield name, str(found[name])
    if isinstance(found.get("seconds"), (int, float)):
        yield "seconds", f"{found['seconds']:.2f}"
    cache = found.get("cache")
    if isinstance(cache, dict):
        cache = {"passes": cache.get("steps"), **cache}  # older pictures call them steps
    if isinstance(cache, dict) and all(isinstance(cache.get(name), int) for name in ("passes", "full", "all_reused")):
        share = cache.get("share")
        asked = found.get("reference_steps")
        whole = f"the blocks of {asked} steps" if isinstance(asked, int) else "blocks"
        blocks = f", {share:.0%} of {whole}" if isinstance(share, (int, float)) else ""
        skipped = f", {cache['skipped']} skipped" if isinstance(cache.get("skipped"), int) and cache["skipped"] else ""
        parts = f"{cache['full']} of {cache['passes']} passes full, {cache['all_reused']} all reused{skipped}"
        yield "cache", f"{parts}{blocks}"
    if found.get("nan_with_cache") is True or found.get("uncached") is True:  # its name in older pictures
        yield "cache", "it was NaN with the cache, and was made again without it"
    if isinstance(found.get("versions"), dict):
        yield "versions", ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    if isinstance(found.get("notes"), dict):
        for name, value in found["notes"].items():
            text = value if isinstance(value, str) else json.dumps(value)
            yield name, text if len(text) <= 200 else text[:200] + "..."
