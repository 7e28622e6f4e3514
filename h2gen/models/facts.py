"""What is known of a model before it is loaded: from its configuration, or from the catalogue. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from h2gen.families import FAMILIES, Family
from h2gen.families.unused import Unused
from h2gen.models.catalogue import Checkpoint
from h2gen.models.defaults import completed_index, read_config
from h2gen.models.entries import CATALOGUE, CatalogueEntry
from h2gen.models.files import index_of

CONFIG = "transformer/config.json"


@dataclass(frozen=True)
class Facts:
    """What a model is.

    Args:
        family: of its transformer.
        index: its ``model_index.json``.
        config: its transformer's ``config.json``.
        place: the folder with its files, or its repository on huggingface.co.
        entry: in the catalogue, if it is one of those models.
    """

    family: Family
    index: Mapping[str, Any]
    config: Mapping[str, Any]
    place: Path | str
    entry: CatalogueEntry | None

    @property
    def folder(self) -> Path | None:
        """The folder with its files; None if they are not on this machine."""
        return self.place if isinstance(self.place, Path) else _downloaded(self.place)

    @property
    def pipeline(self) -> str:
        """Its class in diffusers."""
        return str(self.index.get("_class_name"))

    @property
    def unused(self) -> Mapping[str, Unused]:
        """The settings that it ignores or refuses, by name."""
        return self.family.unused(self.pipeline, self.config, self.index)


def facts_of(checkpoint: Checkpoint) -> Facts | None:
    """What is known of a checkpoint; of a single file, what is known of its base. Does not use the network.

    Returns:
        None if it is not on this machine, or not of a known family.
    """
    whole = checkpoint.base or checkpoint
    entry = entry_of(whole)
    if entry is not None and entry.repo is not None:
        return Facts(entry.of_family, entry.index, entry.config, entry.repo, entry)
    folder = folder_of(whole)
    if folder is None:
        return None
    own = Path(checkpoint.location, "config.json") if checkpoint.kind == "transformer" else folder / CONFIG
    config = _read(own, _changed(own))
    family = FAMILIES.get(str(config.get("_class_name")))
    return None if family is None else Facts(family, model_index_of(checkpoint), config, folder, entry)


def model_index_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """A checkpoint's ``model_index.json``, or that of its base; empty if it is not on this machine."""
    whole = checkpoint.base or checkpoint
    entry, folder = entry_of(whole), folder_of(whole)
    if entry is not None and entry.repo is not None:
        return entry.index
    return {} if folder is None else completed_index(_read(index_of(folder), _changed(index_of(folder))), folder)


def folder_of(checkpoint: Checkpoint) -> Path | None:
    """The folder of a model, of a single file that of its base; None if it is not on this machine."""
    whole = checkpoint.base or checkpoint
    return _downloaded(str(whole.location)) if whole.kind == "hub" else Path(whole.location)


def download_line(checkpoint: Checkpoint) -> str | None:
    """What would be downloaded first, and its size if the catalogue has it; None if the model is on this machine.

    If ``HF_HUB_OFFLINE`` is set: that a run would fail.
    """
    from h2gen.models.hub import absent, is_complete

    whole = checkpoint.base or checkpoint
    if whole.kind != "hub" or is_complete(str(whole.location), checkpoint.parts):
        return None
    if folder_of(checkpoint) is not None:
        return absent(whole.name, "the rest of it", partly=True)
    if checkpoint.base or checkpoint.parts:
        return absent(whole.name, "its other parts")
    entry = entry_of(checkpoint)
    return absent(whole.name, "it" if entry is None else f"{entry.download_gb:g} GB")


def entry_of(checkpoint: Checkpoint) -> CatalogueEntry | None:
    """The entry of the catalogue that a checkpoint is, by whichever of its names."""
    if checkpoint.kind == "bundled":
        return CATALOGUE.get(checkpoint.name)
    if checkpoint.kind != "hub":
        return None
    return next((entry for entry in CATALOGUE.values() if entry.repo == checkpoint.location), None)


@lru_cache(maxsize=64)  # a batch asks for each of its prompts
def _read(file: Path, _changed: int) -> Mapping[str, Any]:
    return read_config(file)


def _changed(file: Path) -> int:
    """When a file was changed; 0 if there is none."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _downloaded(repo: str) -> Path | None:
    from h2gen.models.hub import cached

    return cached(repo)
