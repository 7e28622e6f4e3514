"""How a picture was made, as rows of text for ``h2gen info``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from h2gen.cache.summary import Summary
from h2gen.models.load_options import CHANGING
from h2gen.settings.table import BY_NAME
from h2gen.wording import gigabytes

PEAKS = {"allocated": "allocated on the GPU", "resident": "resident in the whole process"}
"""What a peak of memory is of, and in words."""


def peak_text(size: int, of: str) -> str:
    """A peak of memory in words, such as ``24.1 GB allocated on the GPU``."""
    return f"{gigabytes(size)} {PEAKS[of]}"


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
    if isinstance(model.get("parts"), list):
        yield "parts", ", ".join(map(str, model["parts"]))
    yield "size", f"{settings['width']}x{settings['height']}"
    yield "solver", str(settings.pop("solver", BY_NAME["solver"].default))  # older pictures do not name it
    if "preset" in found:
        yield "preset", str(found["preset"])
    for name, value in settings.items():
        row = BY_NAME.get(name)
        if row is not None and row.later and value in (row.default, []):
            continue  # as in pictures that are older than the setting
        if row is not None and row.of_files:
            for file in row.check(value):
                yield name, f"{file}  {file.sha256[:12]}"
        elif name not in ("width", "height") and value != "":
            yield name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value)
    if "published_plan" in found:
        yield "published plan", str(found["published_plan"])
    for name in ("device", "devices", "dtype", "offload", *CHANGING, "compile", "made"):
        if name in found:
            yield name.replace("_", "-"), str(found[name])
    if isinstance(found.get("seconds"), (int, float)) and 0 <= found["seconds"] < 1e9:
        yield "seconds", f"{found['seconds']:.2f}"
    peak = found.get("peak_memory")
    if isinstance(peak, dict) and type(peak.get("bytes")) is int and peak.get("of") in PEAKS:
        yield "peak memory", peak_text(peak["bytes"], peak["of"])
    cache = found.get("cache")
    if isinstance(cache, dict):
        yield from _cache_row(cache, found.get("reference_steps"))
    kept = found.get("kept_bytes")
    if isinstance(kept, dict) and type(kept.get("total")) is int and 0 <= kept["total"] < 1e15:
        yield "cache kept", f"{kept['total'] / 1e6:.3g} MB"
    if found.get("nan_with_cache") is True or found.get("uncached") is True:  # its name in older pictures
        yield "cache", "it was NaN with the cache, and was made again without it"
    if isinstance(found.get("versions"), dict):
        yield "versions", ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    if isinstance(found.get("notes"), dict):
        for name, value in found["notes"].items():
            text = value if isinstance(value, str) else json.dumps(value)
            yield name, text if len(text) <= 200 else text[:200] + "..."


def _cache_row(cache: Mapping[str, Any], reference_steps: Any) -> Iterator[tuple[str, str]]:
    """The totals of a cache that was on, unless they are damaged. Older pictures lack some of them."""
    counts = {name: value for name, value in cache.items() if name in vars(Summary()) and type(value) is int}
    outcomes = Summary(**counts).by_outcome()
    passes = cache.get("passes", cache.get("steps"))  # older pictures call them steps
    if not outcomes or type(passes) is not int:
        return
    row = f"{passes} passes: {', '.join(f'{count} {word}' for word, count in outcomes)}"
    share = cache.get("share")
    if isinstance(share, (int, float)) and 0 <= share <= 1000:
        whole = f"the blocks of {reference_steps} steps" if isinstance(reference_steps, int) else "blocks"
        row += f"; {share:.0%} of {whole}"
    yield "cache", row
