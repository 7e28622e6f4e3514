"""``h2gen models``: the table of known models, as wide as the terminal allows, and everything about one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from h2gen.cli.console import stdout
from h2gen.families.lora import in_blocks
from h2gen.models.entries import CATALOGUE, CatalogueEntry
from h2gen.settings.profiles.published import WORDS
from h2gen.wording import count, printable

_WIDE, _USUAL, _NARROW = 130, 80, 60
"""Columns that a terminal needs for repositories and whole licences, for what models take, and for parameters."""


def print_catalogue(*, as_json: bool = False) -> None:
    """The models that have an alias, one per line; as JSON, one object each, as ``print_model`` has it."""
    from rich.table import Table

    from h2gen.models.hub import is_downloaded
    from h2gen.settings.describe import describe

    if as_json:
        for name in CATALOGUE:
            print(json.dumps(describe(name)))
        return
    console = stdout()
    wide, narrow = console.width >= _WIDE, console.width < _NARROW
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("alias", no_wrap=True)
    if wide:
        table.add_column("repository", no_wrap=True)
    if not narrow:
        table.add_column("params", no_wrap=True, justify="right")
    table.add_column("download", no_wrap=True, justify="right")
    table.add_column("licence")
    if console.width >= _USUAL:
        table.add_column("besides a prompt")
    for entry in CATALOGUE.values():
        table.add_row(
            entry.name,
            *([entry.repo or "bundled"] if wide else []),
            *([] if narrow else [count(entry.parameters)]),
            "-" if entry.repo is None else "downloaded" if is_downloaded(entry) else f"{entry.download_gb:g} GB",
            _licence(entry, wide) + (", gated" if entry.gated else ""),
            *([", ".join(entry.takes)] if console.width >= _USUAL else []),
        )
    console.print(table)


def _licence(entry: CatalogueEntry, whole: bool) -> str:
    short = {"Non-Commercial": "non-commercial", "Kommunity": "Kommunity"}
    return entry.licence if whole else next((short[word] for word in short if word in entry.licence), entry.licence)


_TASKS = {
    "text": "from a prompt",
    "image": "from a picture (--image)",
    "inpaint": "by inpainting (--image, --mask)",
    "edit": "from reference pictures (--image)",
    "fill": "by inpainting (--image, --mask)",
    "control": "from a control picture (--control)",
    "controlnet": "with ControlNets (--controlnet)",
    "redux": "like another picture (--redux)",
}


def print_model(found: Mapping[str, Any], *, as_json: bool = False) -> None:
    """What ``h2gen.settings.describe`` found of a model, as a table or as one JSON object."""
    from rich.table import Table
    from rich.text import Text

    if as_json:
        print(json.dumps(found))
        return
    console = stdout()
    rows = [(title, printable(text)) for title, text in _rows(found)]
    if not console.is_terminal:  # a table would fill each line with blanks
        for title, text in rows:
            console.print(Text(f"{title:20} {text}"), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in rows:
        table.add_row(title, Text(text))
    console.print(table)


def _about_lora(lora: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "LoRA", f"for {lora['family'] or 'an unknown model'}" + (f", width {lora['width']}" if lora["width"] else "")
    yield "trains", f"{lora['layers']} layers of the {' and '.join(lora['parts'])}{in_blocks(lora['blocks'])}"
    yield "rank", ", ".join(map(str, lora["ranks"])) or "unknown"
    yield "layout", f"{lora['layout']}, {lora['tensors']} tensors"
    if lora["control"]:
        yield "use", "a Control LoRA: the model follows the picture given with --control"
    if lora["unsupported"]:
        yield "not loaded", f"{lora['unsupported']}, which diffusers does not load"
    yield "hash", lora["hash"]


def _makes_videos(found: Mapping[str, Any]) -> bool:
    return bool(found.get("defaults", {}).get("frames"))


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", ": ".join([found["name"], *([found["description"]] if "description" in found else [])])
    if "lora" in found:
        yield from _about_lora(found["lora"])
    if "base" in found:
        yield "base", found["base"]
    if found.get("repository"):
        place = "on this machine" if found["here"] else f"{found['download_gb']:g} GB to download"
        yield "repository", f"{found['repository']}; {place}"
    elif found["kind"] == "bundled":
        yield "repository", "bundled with h2gen"
    elif found["kind"] == "hub" and not found["here"]:
        yield "repository", "not on this machine; more is known once it has been downloaded"
    if "licence" in found:
        page = f"https://huggingface.co/{found['repository']}"
        yield "licence", found["licence"] + (f"; accept it at {page}" if found["gated"] else "")
    if "family" in found:
        size = [count(found["parameters"])] if "parameters" in found else []
        yield "family", ", ".join([found["family"], *(f"{each} parameters in the transformer" for each in size)])
    if "defaults" in found:
        yield from _about_use(found)
    if "takes_guidance" in found:
        yield "guidance", "distilled" if found["takes_guidance"] else "not distilled"
    if "stages" in found:
        yield "stages", ", ".join(f"{stage} {blocks} blocks" for stage, blocks in found["stages"].items())
    if "bases" in found:
        bases = " or ".join(f"--base {base}" for base in found["bases"])
        yield "other parts", f"from a base: {bases or 'no alias has this transformer; name its model with --base'}"
    if "cache" in found:
        yield "cache", _about_cache(found["cache"])
    if "memory" in found:
        yield from _about_memory(found["memory"], found["defaults"])
        if "here" in found["memory"]:
            yield "on this machine", found["memory"]["here"].removeprefix("Memory: ")
    if found.get("published_plans"):
        plans = "; ".join(found["published_plans"])
        yield "plans", f"{plans}; {WORDS}; --speedup uses them until you have a profile"
    elif "published_plans" in found and found["cache"]["helps"] and found["kind"] != "bundled":
        yield (
            "plans",
            f"none published for it; --speedup needs a profile of your own: h2gen tune --model {found['name']}",
        )
    if "knows" in found:
        yield from _about_vocabulary(found["knows"])


def _about_use(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Tasks, defaults and options."""
    defaults = found["defaults"]
    if "tasks" in found:
        alone = [task for task in found["tasks"] if " " not in task]  # the others do two of these at once
        yield (
            f"makes {'videos' if _makes_videos(found) else 'pictures'}",
            "; ".join(dict.fromkeys(_TASKS.get(task, task) for task in alone)),
        )
    if found.get("needs"):
        kind = f"; made for --control {found['follows']}:FILE" if found.get("follows") else ""
        yield "needs", " and ".join(f"--{name}" for name in found["needs"]) + kind
    size = f"{defaults['width']}x{defaults['height']}"
    yield "size", f"{size}; sides are multiples of {defaults['size_multiple']}"
    if defaults["frames"]:
        yield "frames", f"{defaults['frames']}, {defaults['fps']:g} per second"
    options = found.get("options", {})
    for name in ("steps", "guidance", "cfg", "max_sequence_length"):
        if options.get(name, {"use": "used"})["use"] == "used":
            yield name.replace("_", " "), f"{defaults[name]:g}"
    for use, title in (("used", "uses"), ("ignored", "ignores"), ("refused", "refuses")):
        names = {name: option.get("why", "") for name, option in options.items() if option["use"] == use}
        reasons: dict[str, list[str]] = {}
        for name, why in names.items():
            reasons.setdefault(why, []).append(f"--{name.replace('_', '-')}")
        if reasons:
            yield title, "; ".join(", ".join(each) + (f" (it {why})" if why else "") for why, each in reasons.items())


def _about_cache(cache: Mapping[str, Any]) -> str:
    most = f"the preset {cache['preset']!r} can skip at most {cache['most_reused']} of {cache['steps']} steps"
    return most if cache["helps"] else f"{most}; with so few steps it saves almost nothing"


def _about_memory(memory: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    what = f"video of {defaults['frames']} frames" if defaults["frames"] else "picture"
    yield (
        "memory",
        f"{_sizes(memory['with_picture'])}, by --offload; computed: what the GPU needs for one {what} at "
        f"{defaults['width']}x{defaults['height']} in 16 bits, weights included (docs/memory.md)",
    )
    yield "weights alone", f"{_sizes(memory['bytes'])}; fp32 doubles this"
    alike: dict[str, list[str]] = {}
    for name, sizes in memory["quantized"].items():
        alike.setdefault(_sizes(sizes), []).append(name)
    for sizes, names in alike.items():
        same = f"; the same with {', '.join(names[1:])}" if names[1:] else ""
        yield f"--quantize {names[0]}", f"{sizes} of weights{same}"


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{way} {_size(size)}" for way, size in sizes.items())


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"


def _about_vocabulary(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "trained at", ", ".join(known["shapes"])
    yield f"{len(known['things'])} things", ", ".join(names[0] for names in known["things"])
    others = [f"{other} ({names[0]})" for names in known["things"] for other in names[1:]]
    if others:
        yield "also called", ", ".join(others)
    for title in ("colours", "sizes", "numbers", "layouts", "motions", "styles", "backgrounds"):
        if known[title]:
            phrases = ["A alone (stays still)" if phrase == "A" else phrase for phrase in known[title]]
            yield title, ("; " if title == "styles" else ", ").join(phrases)
