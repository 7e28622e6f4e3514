"""A picture's metadata become a plan for making it again; a stranger's cannot make us fetch or read anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from h2gen.errors import MetadataError
from h2gen.models.catalogue import CATALOGUE, REPO_ID
from h2gen.models.choices import DTYPES
from h2gen.models.hub import is_complete
from h2gen.output.metadata import Metadata, Origin, versions
from h2gen.settings.resolve import Layers, user_defaults
from h2gen.settings.values import Resolved


def layers_of(found: Metadata, given: Mapping[str, Any], lasting_settings: Layers | None = None) -> Layers:
    """Who says what when a picture is made again: options, then the picture, then what the user has set for good.

    A user_defaults setting is a wish for new pictures: here it only says where things go, and which model is confirmed.

    Raises:
        MetadataError: the picture's model would have to be fetched, or is a path, and nobody has confirmed it.
    """
    mine = user_defaults() if lasting_settings is None else lasting_settings
    settings = found.settings
    recorded: dict[str, Any] = {
        "seed": settings.seed,
        "size": f"{settings.width}x{settings.height}",
        "steps": settings.steps,
        "solver": settings.solver,
        "guidance": settings.guidance,
        "cfg": settings.cfg,
        "negative": settings.negative,
        "max_sequence_length": settings.max_sequence_length,
        "dtype": _dtype(found.dtype),
    }
    if given.get("preset") is None and not given.get("no_cache"):
        recorded |= asdict(settings.cache)
    if given.get("cfg") is not None and given["cfg"] <= 1:
        del recorded["negative"]  # it needs true guidance, which was just switched off
    if given.get("model") is None:
        recorded["model"], recorded["base"] = _model(found, mine)
    kept = [
        (source, {name: value for name, value in values.items() if name in ("out", "format", "device", "offload")})
        for source, values in mine
    ]
    return [("option", given), ("picture", recorded), *kept]


def _model(found: Metadata, mine: Layers) -> tuple[str, str | None]:
    """The recorded model, if using it fetches nothing: it is bundled or on this disk, or the user's own choice."""
    for _, values in mine:
        model = values.get("model")
        if model is not None and (model == found.model or str(model).replace("\\", "/").split("/")[-1] == found.model):
            return str(model), values.get("base")
    entry = CATALOGUE.get(found.model)
    repo = entry.repo if entry is not None else found.model
    if entry is not None and repo is None:
        return found.model, None
    if found.base is None and repo is not None and REPO_ID.fullmatch(repo) and is_complete(repo):
        return found.model, None
    raise MetadataError(
        f"The picture was made with the model {found.model!r}, which is not on this machine under that name; "
        "say which to use with --model."
    )


def _dtype(recorded: str | None) -> str | None:
    """The recorded dtype as ``--dtype`` takes it."""
    return recorded if recorded in DTYPES else None


def relabelled(resolved: Mapping[str, Resolved], preset: str | None) -> dict[str, Resolved]:
    """Settings that say of the cache what the picture says: its thresholds are recorded, its preset is but a name."""
    return dict(resolved) if preset is None else {**resolved, "preset": Resolved(preset, "picture")}


def differences(found: Metadata, made: Origin) -> Iterator[str]:
    """What is not as it was when the picture was made, a line each; with none the pixels should come out the same."""
    if found.content_hash != made.content_hash:
        was = (found.content_hash or "unknown")[:12]
        yield f"The model {made.name!r} is not the one of the picture: {made.content_hash[:12]}, and it was {was}."
    for what, before, now in (("device", found.device, made.device), ("dtype", found.dtype, made.dtype)):
        if before is not None and before != now:
            yield f"The picture was made on {what} {before}, and this is {now}."
    if found.together:
        yield "The picture was made together with others, which rounds otherwise than alone."
    here = versions()
    changed = [f"{name} {old}, here {here[name]}" for name, old in found.versions.items() if here.get(name, old) != old]
    if changed:
        yield f"The picture was made with {'; '.join(changed)}."
