"""The memory that a model's weights need, from the headers of its files or from the catalogue. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from h2gen.errors import ModelError
from h2gen.families import FAMILIES
from h2gen.models import files
from h2gen.models.catalogue import Checkpoint
from h2gen.models.defaults import read_config
from h2gen.models.entries import CatalogueEntry
from h2gen.models.facts import Facts
from h2gen.models.footprint import Part, footprint, measure

BYTES = 2
"""Of a weight, in 16 bits."""
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class MemoryNeeded:
    """What a model's weights take on the device, at most at a time.

    Args:
        bytes: by what ``--offload`` says, in 16 bits; quantized weights as they are stored.
        source: what it was computed from: ``files`` or ``catalogue``.
    """

    bytes: Mapping[str, int]
    source: str


def memory_needed(checkpoint: Checkpoint, facts: Facts) -> MemoryNeeded | None:
    """The memory that a checkpoint's weights need; None if neither its files nor their sizes are known here."""
    parts = _parts(facts)
    if parts is None:
        return None
    source, whole = parts
    if checkpoint.base is not None:
        own = _own_transformer(checkpoint, facts)
        if own is None:
            return None
        source, whole = "files", [own, *(part for part in whole if part.name != facts.family.transformer)]
    return MemoryNeeded(footprint(whole), source)


def _parts(facts: Facts) -> tuple[str, list[Part]] | None:
    if facts.entry is not None:
        return "catalogue", list(_of_entry(facts.entry))
    if facts.folder is None:
        return None
    try:
        found = list(_of_folder(facts.folder))
    except (ModelError, OSError):  # loading it reports what is wrong
        return None
    return ("files", found) if found else None


def _of_entry(entry: CatalogueEntry) -> Iterator[Part]:
    for part in entry.parts:
        yield part.times(BYTES)


def _of_folder(folder: Path) -> Iterator[Part]:
    for name, (_, kind) in files.components(files.read_index(folder)).items():
        config = folder / name / "config.json"
        if config.is_file():  # tokenizers and schedulers have none
            stored: dict[str, files.Stored] = {}
            for file in files.weight_files(folder / name):
                stored |= files.read_header(file).tensors
            yield _measured(kind, stored, as_stored="quantization_config" in read_config(config))


def _own_transformer(checkpoint: Checkpoint, facts: Facts) -> Part | None:
    """The transformer of a checkpoint that takes its other parts from a base."""
    place = Path(checkpoint.location)
    stored: dict[str, files.Stored] = {}
    try:
        for file in files.weight_files(place) if place.is_dir() else [place]:
            stored |= files.tensors_of(file).tensors
    except (ModelError, OSError):
        return None
    return _measured(facts.family.transformer, stored, as_stored=place.suffix.lower() == ".gguf")


def _measured(name: str, stored: Mapping[str, files.Stored], *, as_stored: bool) -> Part:
    """A part from the headers of its files.

    Args:
        name: of its class.
        stored: its tensors.
        as_stored: whether weights that are quantized stay so when they are loaded.
    """
    sizes = {key: _size(tensor, as_stored) for key, tensor in stored.items()}
    return measure(name, sizes, in_blocks=name in FAMILIES)


def _size(tensor: files.Stored, as_stored: bool) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    if not as_stored or tensor.dtype in _FLOATS:
        return count * BYTES
    return round(count * files.bits_of(tensor.dtype) / 8)
