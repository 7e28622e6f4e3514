"""Replay: from a picture's metadata to settings for making it again, without downloading or reading what it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from h2gen.errors import MetadataError
from h2gen.models.catalogue import CATALOGUE, REPO_ID
from h2gen.models.choices import DTYPES
from h2gen.models.hub import is_complete
from h2gen.models.load_options import CHANGING, DEFAULT
from h2gen.output.metadata import Metadata, Origin, versions
from h2gen.settings.layers import Layers, Resolved
from h2gen.settings.table import BY_NAME, OF_THIS_MACHINE
from h2gen.settings.user_defaults import user_defaults
from h2gen.settings.values import FILES, Settings
from h2gen.wording import plural, printable


def layers_of(found: Metadata, given: Mapping[str, Any], defaults: Layers | None = None) -> Layers:
    """The layers of settings for making a picture again: options, then the picture, then user defaults.

    User defaults are meant for new pictures, so only those about where to write and what to compute
    on are used; the default model only confirms the picture's.

    Args:
        found: the picture's metadata.
        given: options by name; None if not given.
        defaults: user defaults; None to look them up.

    Raises:
        MetadataError: the picture's model would have to be downloaded, or is a path, and the user has not confirmed it.
    """
    mine = user_defaults() if defaults is None else defaults
    recorded = found.settings.to_json()
    del recorded["prompt"]
    recorded |= {
        "size": f"{recorded.pop('width')}x{recorded.pop('height')}",
        "solver": found.settings.solver,
        "dtype": _dtype(found.dtype),
        **{name: found.changing.get(name, getattr(DEFAULT, name)) for name in CHANGING},
    }
    if given.get("preset") is not None or given.get("no_cache"):
        recorded = {name: value for name, value in recorded.items() if not BY_NAME[name].of_cache}
    missing = []
    for name in FILES:
        files = getattr(found.settings, name)
        recorded.pop(name, None)
        if not files:
            continue
        try:
            option, noun = BY_NAME[name].option, found.settings.noun
            again = BY_NAME[name].files.again(option, files, given.get(name), noun)
        except MetadataError as error:
            missing.append(str(error))  # all that lack are told at once
        else:
            if given.get(name) is None:
                recorded[name] = again
            else:
                given = {**given, name: again}
    if missing:
        raise MetadataError("\n".join(missing))
    if given.get("cfg") is not None and given["cfg"] <= 1:
        del recorded["negative"]  # it needs true guidance, which the option switches off
    if found.parts and not given.get("vae") and not given.get("text_encoder"):
        names = ", ".join(repr(printable(name)) for name in found.parts)
        raise MetadataError(
            f"The {found.settings.noun} was made with {names} in place of the model's own parts; give the files with "
            "--vae or --text-encoder."
        )
    if given.get("model") is None:
        recorded["model"], recorded["base"] = _model(found, mine)
    kept = [
        (source, {name: value for name, value in values.items() if name in OF_THIS_MACHINE}) for source, values in mine
    ]
    return [("option", given), (found.settings.noun, recorded), *kept]


def _model(found: Metadata, mine: Layers) -> tuple[str, str | None]:
    """The recorded model, if nothing is downloaded for it: it is bundled, on this disk or the user's own choice."""
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
        f"The {found.settings.noun} was made with the model {found.model!r}, which is not on this machine under that "
        "name; say which to use with --model."
    )


def _dtype(recorded: str | None) -> str | None:
    """The recorded dtype as ``--dtype`` takes it."""
    return recorded if recorded in DTYPES else None


def relabelled(resolved: Mapping[str, Resolved], found: Metadata) -> dict[str, Resolved]:
    """The settings with the preset that the picture names; the settings themselves are all recorded."""
    if found.preset is None:
        return dict(resolved)
    return {**resolved, "preset": Resolved(found.preset, found.settings.noun)}


def differences(found: Metadata, now: Origin, settings: Settings) -> Iterator[str]:
    """One line per difference from when the picture was made; if there are none, the pixels should be the same.

    Args:
        found: the picture's metadata.
        now: what it is made with now.
        settings: that it is made with now; only input files are compared, because options change the others on purpose.
    """
    noun = found.settings.noun
    if found.content_hash != now.content_hash:
        was = (found.content_hash or "unknown")[:12]
        yield (
            f"The model {now.name!r} is not the one that made the {noun}: its hash is {str(now.content_hash)[:12]}, "
            f"the {noun}'s is {was}."
        )
    for name in FILES:
        those, these = getattr(found.settings, name), getattr(settings, name)
        if {each.sha256 for each in those} != {each.sha256 for each in these}:
            was, here = (", ".join(map(str, each)) or "nothing" for each in (those, these))
            yield f"The {noun} was made with the {name} {printable(was)}; this one uses {printable(here)}."
    for what, before, here in (("device", found.device, now.device), ("dtype", found.dtype, now.dtype)):
        if before is not None and before != here:
            yield f"The {noun} was made on {what} {before}, and this is {here}."
    for name in CHANGING:
        before, here = (each.changing.get(name, getattr(DEFAULT, name)) for each in (found, now))
        if before != here:
            yield f"The {noun} was made with {BY_NAME[name].option} {before}, and this with {here}."
    devices = now.recorded.get("devices", 1)
    if found.devices != devices:
        those, these = plural(found.devices, "device"), plural(devices, "device")
        yield f"The {noun} was made on {those}, and this on {these}, which rounds differently."
    if found.compiled != now.recorded.get("compile", False):
        was, here = ("with" if compiled else "without" for compiled in (found.compiled, not found.compiled))
        yield f"The {noun} was made {was} --compile, and this {here} it, which rounds differently."
    if found.together:
        yield f"The {noun} was made in a batch with others, which rounds differently."
    current = versions()
    changed = {name: old for name, old in found.versions.items() if current.get(name, old) != old}
    if changed:
        both = "; ".join(f"{name} {old}, here {current[name]}" for name, old in changed.items())
        yield f"The {noun} was made with {both}."
