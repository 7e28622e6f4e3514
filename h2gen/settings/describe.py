"""What a model takes, knows and needs, before it is loaded: what ``h2gen models show`` prints."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

from h2gen.cache.policies.bound import most_reused
from h2gen.errors import ModelError
from h2gen.families import TASKS, recognize
from h2gen.families.lora import read_lora
from h2gen.families.single_file import ONLY, block_counts, input_channels, other_kind, takes_guidance
from h2gen.families.unused import Unused
from h2gen.files import expanded
from h2gen.models.catalogue import CATALOGUE, Checkpoint, resolve
from h2gen.models.content_hash import file_hash
from h2gen.models.entries import inputs_of, needed_by
from h2gen.models.facts import Facts, entry_of, facts_of
from h2gen.models.files import WEIGHTS, tensors_of
from h2gen.models.fit_here import fit_here
from h2gen.models.fit_memory import as_loaded
from h2gen.models.footprint import footprint
from h2gen.models.load_options import LoadOptions
from h2gen.models.lora_files import known_lora
from h2gen.models.memory_needed import MemoryNeeded, memory_needed
from h2gen.models.quantization import QUANTIZATIONS
from h2gen.models.vocabulary import Vocabulary, vocabulary
from h2gen.settings import presets
from h2gen.settings.profiles import FEWEST_STEPS
from h2gen.settings.profiles.published import published_model, summary_lines
from h2gen.settings.table import TABLE
from h2gen.settings.workload import default_work
from h2gen.wording import printable

AUTO = LoadOptions(offload="auto")
"""How a model is loaded if nothing is said about it."""

OPTIONS = tuple(
    row.name
    for row in TABLE
    if row.per_prompt and row.commands and not row.of_cache and (row.in_picture or row.name == "size")
    if row.name != "seed"
)
"""The settings that a model uses, ignores or refuses."""
_BY_TASK = ("image", "mask", "control", "controlnet", "redux", "redux_model")
"""Those that a model takes if one of its tasks does."""
_OF_VIDEOS = ("frames", "fps")
"""Those that models refuse which make pictures."""


def describe(name: str, base: str | None = None) -> dict[str, Any]:
    """What is known of a model, as one JSON object. Nothing is loaded, and the network is not used.

    Args:
        name: as ``--model`` takes it.
        base: as ``--base`` takes it.

    Raises:
        ModelError: nothing has this name, or it is a file that is not a model.
    """
    file = known_lora(name) or expanded(name)
    if base is None and name not in CATALOGUE and file.suffix.lower() in WEIGHTS and os.path.isfile(file):
        return {"name": name, "kind": "file", **_about_file(file)}
    checkpoint = resolve(name, base)
    facts = facts_of(checkpoint)
    entry = entry_of(checkpoint)
    found: dict[str, Any] = {"name": name, "kind": checkpoint.kind}
    if entry is not None:
        found |= {
            "description": entry.description,
            "repository": entry.repo,
            "licence": entry.licence,
            "gated": entry.gated,
            **({"follows": entry.follows} if entry.follows else {}),
            "parameters": entry.parameters,
            "download_gb": entry.download_gb if entry.repo else 0.0,
        }
    if checkpoint.base is not None:
        found["base"] = checkpoint.base.name
    found["here"] = _is_here(checkpoint)
    found["defaults"] = asdict(checkpoint.defaults)
    if facts is not None:
        found |= _about_family(checkpoint, facts)
    found["cache"] = _about_cache(checkpoint, facts)
    if facts is not None:
        found["published_plans"] = list(summary_lines(published_model(checkpoint)))
    needed = None if facts is None else memory_needed(checkpoint, facts)
    if needed is not None:
        found["memory"] = _about_memory(checkpoint, needed)
        here = fit_here(checkpoint, AUTO, default_work(checkpoint))
        if here is not None:
            found["memory"]["here"] = here
    known = vocabulary(checkpoint)
    if known is not None:
        found["knows"] = _about_vocabulary(known)
    return found


def _about_file(file: Path) -> dict[str, Any]:
    """What a single file without a base says about the transformer in it, by its header.

    Raises:
        ModelError: it is damaged, or holds something else.
    """
    tensors = tensors_of(file).tensors
    family = recognize(tensors)
    kind = other_kind(tensors, family, file)
    lora = read_lora({name: each.shape for name, each in tensors.items()})
    if lora is not None:
        return {"kind": "LoRA", "lora": {**lora._asdict(), "hash": file_hash(file)}}
    if kind is not None:
        raise kind.refusal(file)
    if family is None:
        raise ModelError(f"{printable(str(file))!r} is not a transformer that h2gen supports. {ONLY}.")
    counted = dict(zip(("num_layers", "num_single_layers"), block_counts(tensors), strict=True))
    prefix = family.prefix(tensors) or ""
    shapes = {name.removeprefix(prefix): each.shape for name, each in tensors.items() if name.startswith(prefix)}
    count, channels = sum(prod(shape) for shape in shapes.values()), input_channels(shapes)
    bases = [
        entry.name
        for entry in CATALOGUE.values()
        if entry.repo and entry.of_family is family and abs(entry.parameters - count) < 0.005 * count
        if entry.config.get("guidance_embeds", False) == takes_guidance(shapes)
        if entry.config.get("in_channels") == (channels if channels in family.with_pictures else None)
    ]
    return {
        "family": family.title,
        "parameters": count,
        "stages": dict(zip(("structure", "detail"), family.stages(counted) or (), strict=True)),
        "takes_guidance": takes_guidance(shapes),
        "bases": bases,
    }


def _is_here(checkpoint: Checkpoint) -> bool:
    """Whether it is on this machine."""
    if checkpoint.base is not None and not _is_here(checkpoint.base):
        return False
    if checkpoint.kind != "hub":
        return Path(checkpoint.location).exists()
    from h2gen.models.hub import is_complete

    return is_complete(str(checkpoint.location))


def _about_family(checkpoint: Checkpoint, facts: Facts) -> dict[str, Any]:
    tasks = {**TASKS.get(facts.pipeline, {}), **({"redux": facts.family.redux} if facts.family.redux else {})}
    unused: dict[str, Unused] = dict(facts.unused)
    for name in _BY_TASK:
        if name not in inputs_of(tasks):
            unused.setdefault(name, Unused("has no pipeline for that", refused=True))
    if not facts.family.makes_video:
        unused |= dict.fromkeys(_OF_VIDEOS, Unused("makes pictures", refused=True))
    options: dict[str, dict[str, str]] = {}
    for name in OPTIONS:
        why = unused.get(name)
        if why is None:
            options[name] = {"use": "used"}
        else:
            options[name] = {"use": "refused" if why.refused else "ignored", "why": why.why}
    stages = facts.family.stages(facts.config)
    return {
        "family": facts.family.title,
        "pipeline": facts.pipeline,
        "tasks": tasks,
        "needs": list(needed_by(tasks)),
        "options": options,
        **({} if stages is None else {"stages": dict(zip(("structure", "detail"), stages, strict=True))}),
    }


def _about_cache(checkpoint: Checkpoint, facts: Facts | None) -> dict[str, Any]:
    """What the default preset could skip at the model's number of steps."""
    preset = presets.load_preset(presets.DEFAULT)
    steps, config = checkpoint.defaults.steps, preset.config
    if facts is not None and facts.family.mean_velocity(facts.config):  # whose steps cannot be forecast
        config = replace(config, tolerance=0.0, plan="")
    most = most_reused(config, steps)
    return {
        "preset": preset.name,
        "steps": steps,
        "most_reused": most,
        "helps": steps >= FEWEST_STEPS and most > 0,
    }


def _about_memory(checkpoint: Checkpoint, needed: MemoryNeeded) -> dict[str, Any]:
    """Bytes on the device by ``--offload``, in 16 bits: of the weights alone, and with all that a picture takes."""
    quantized = {
        name: dict(footprint(as_loaded(needed.parts, LoadOptions(quantize=name), 2)))
        for name in (() if needed.quantized else QUANTIZATIONS)
    }
    return {
        "bytes": dict(needed.bytes),
        "with_picture": footprint(needed.parts, default_work(checkpoint)),
        "quantized": quantized,
        "computed_from": needed.source,
    }


def _about_vocabulary(known: Vocabulary) -> dict[str, Any]:
    titles = ("colours", "sizes", "numbers", "layouts", "motions", "styles", "backgrounds")
    return {
        "shapes": [f"{width}x{height}" for width, height in known.shapes],
        "things": [list(names) for names in known.things],
        **{title: list(getattr(known, title)) for title in titles},
    }
