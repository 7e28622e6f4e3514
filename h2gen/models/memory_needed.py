"""The memory that a model's weights need, from the headers of its files or from the catalogue. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from h2gen.errors import ModelError
from h2gen.families import FAMILIES
from h2gen.models import files
from h2gen.models.catalogue import Checkpoint
from h2gen.models.defaults import read_config
from h2gen.models.facts import Facts
from h2gen.models.footprint import Part, footprint, measure, width_of
from h2gen.models.quantization import stored_quantization

_EMBEDDERS = ("x_embedder.weight", "img_in.weight")
"""Of image tokens, in diffusers' names and in the original ones: as many rows as a transformer has channels."""
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class MemoryNeeded:
    """The sizes of a model's parts in bytes, as they are once they are loaded.

    Args:
        parts: each with its sizes; quantized weights as they are stored.
        source: what they were computed from: ``files`` or ``catalogue``.
        quantized: whether the transformer is stored quantized, so that it cannot be quantized again.
    """

    parts: Sequence[Part]
    source: str
    quantized: bool = False

    @property
    def bytes(self) -> Mapping[str, int]:
        """What the weights take on the device, at most at a time, by what ``--offload`` says."""
        return footprint(self.parts)


def memory_needed(checkpoint: Checkpoint, facts: Facts, value: int = 2) -> MemoryNeeded | None:
    """The memory that a checkpoint's weights need; None if neither its files nor their sizes are known here.

    Args:
        checkpoint: from ``resolve``.
        facts: what is known of it.
        value: bytes per weight: 2 in 16 bits, 4 in fp32.
    """
    parts = _parts(facts, value)
    if parts is None:
        return None
    source, whole = parts
    if checkpoint.base is not None:
        own = _own_transformer(checkpoint, facts, value)
        if own is None:
            return None
        source, whole = "files", [own, *(part for part in whole if part.name != facts.family.transformer)]
    return MemoryNeeded(whole, source, _is_quantized(checkpoint, facts))


def _is_quantized(checkpoint: Checkpoint, facts: Facts) -> bool:
    place = Path(checkpoint.location)
    if checkpoint.kind == "file":
        return place.suffix.lower() == ".gguf"
    if checkpoint.kind != "transformer":
        if facts.folder is None:
            return False
        place = facts.folder / "transformer"
    return stored_quantization(place) is not None


def _parts(facts: Facts, value: int) -> tuple[str, list[Part]] | None:
    if facts.entry is not None:
        return "catalogue", [part.times(value) for part in facts.entry.parts]
    if facts.folder is None:
        return None
    try:
        found = list(_of_folder(facts.folder, value))
    except (ModelError, OSError):  # loading it reports what is wrong
        return None
    return ("files", found) if found else None


def _of_folder(folder: Path, value: int) -> Iterator[Part]:
    for name, (_, kind) in files.components(files.read_index(folder)).items():
        file = folder / name / "config.json"
        if file.is_file():  # tokenizers and schedulers have none
            config, stored = read_config(file), dict[str, files.Stored]()
            for each in files.weight_files(folder / name):
                stored |= files.read_header(each).tensors
            as_stored = "quantization_config" in config
            yield _measured(kind, stored, value, as_stored=as_stored, width=width_of(config))


def _own_transformer(checkpoint: Checkpoint, facts: Facts, value: int) -> Part | None:
    """The transformer of a checkpoint that takes its other parts from a base."""
    place = Path(checkpoint.location)
    stored: dict[str, files.Stored] = {}
    try:
        for file in files.weight_files(place) if place.is_dir() else [place]:
            stored |= files.tensors_of(file).tensors
    except (ModelError, OSError):
        return None
    width = next((each.shape[0] for name, each in stored.items() if name.endswith(_EMBEDDERS)), 0)
    as_stored = place.suffix.lower() == ".gguf"
    return _measured(facts.family.transformer, stored, value, as_stored=as_stored, width=width)


def _measured(name: str, stored: Mapping[str, files.Stored], value: int, *, as_stored: bool, width: int) -> Part:
    """A part from the headers of its files.

    Args:
        name: of its class.
        stored: its tensors.
        value: bytes per weight.
        as_stored: whether weights that are quantized stay so when they are loaded.
        width: see ``Part``.
    """
    sizes = {key: _size(tensor, value, as_stored) for key, tensor in stored.items()}
    return measure(name, sizes, in_blocks=name in FAMILIES, width=width)


def _size(tensor: files.Stored, value: int, as_stored: bool) -> int:
    count = prod(tensor.shape)
    if not as_stored or tensor.dtype in _FLOATS:
        return count * value
    return round(count * files.bits_of(tensor.dtype) / 8)
