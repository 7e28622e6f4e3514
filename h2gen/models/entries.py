"""The models that h2gen knows by name, from ``catalogue.toml``. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from h2gen.families import FAMILIES, TASKS, Family, ModelDefaults
from h2gen.models.defaults import FILE, read_defaults
from h2gen.models.footprint import Part
from h2gen.toml import read_toml

BUNDLED = Path(__file__).parent / "tiny"
"""The folder of the checkpoint that ships with h2gen and is used if no other is named; others are beside it."""
_TAKES: Mapping[str, tuple[str, ...]] = {
    "text": (),
    "edit": ("image",),
    "inpaint": ("image", "mask"),
    "fill": ("image", "mask"),
    "controlnet": ("control", "controlnet"),
    "redux": ("redux", "redux_model"),
}
"""By task; other tasks are called like what they take, and ``control image`` takes both."""
CATALOGUE_FILE = Path(__file__).with_name("catalogue.toml")


def bundled_folder(name: str) -> Path:
    """The folder of a checkpoint that ships with h2gen."""
    return BUNDLED.with_name(name)


def inputs_of(tasks: Iterable[str]) -> tuple[str, ...]:
    """What these tasks take besides a prompt, as the options are called: ``image``, ``mask``, ``control``..."""
    words = [word for task in tasks for word in task.split()]
    return tuple(dict.fromkeys(taken for word in words for taken in _TAKES.get(word, (word,))))


def needed_by(tasks: Collection[str]) -> tuple[str, ...]:
    """What a model with these tasks cannot do without, as ``inputs_of`` calls it; the same as ``complete_task``."""
    return next((inputs_of([task]) for task in ("control", "fill") if task in tasks), ())


@dataclass(frozen=True)
class CatalogueEntry:
    """A model with a short name.

    Args:
        name: what the user types.
        repo: its repository on huggingface.co; None for a bundled model.
        licence: of its weights.
        gated: whether its licence has to be accepted on huggingface.co first.
        description: one line.
        index: what its ``model_index.json`` says: the pipeline and, for FLUX.2 [klein], whether it is distilled.
        config: what its transformer's ``config.json`` says, but for what the class has by default.
        parts: the numbers of parameters of its parts, the transformer first.
        defaults: what its authors recommend.
        follows: the kind of control picture that it was trained on, if it follows one.
    """

    name: str
    repo: str | None
    licence: str
    gated: bool
    description: str
    index: Mapping[str, Any]
    config: Mapping[str, Any]
    parts: tuple[Part, ...]
    defaults: ModelDefaults
    follows: str = ""

    @cached_property
    def of_family(self) -> Family:
        return FAMILIES[self.config["_class_name"]]

    @property
    def family(self) -> str:
        """The title of its family."""
        return self.of_family.title

    @property
    def pipeline(self) -> str:
        """Its class in diffusers."""
        return str(self.index["_class_name"])

    @property
    def takes(self) -> tuple[str, ...]:
        """What it makes pictures from besides a prompt: ``image``, ``mask`` and so on, as the options are called."""
        reads = self.of_family.redux and self.repo  # Redux's tokens are too wide for the bundled model
        return (*inputs_of(TASKS.get(self.pipeline, {})), *(["redux"] if reads else []))

    @property
    def parameters(self) -> int:
        """Of the transformer only."""
        return self.parts[0].all

    @property
    def download_gb(self) -> float:
        """Gigabytes downloaded on first use: all parts, in 16 bits."""
        size = sum(part.all for part in self.parts) * 2 / 1e9
        return round(size, 1 if size < 100 else None)


def read_catalogue(file: Path = CATALOGUE_FILE) -> Iterator[CatalogueEntry]:
    """The models in a catalogue, in its order."""
    found = read_toml(file)
    for name, row in found["models"].items():
        parts = [found["parts"][part] for part in row["parts"]]
        config = {"_class_name": parts[0]["class"], **parts[0].get("config", {})}
        index = {"_class_name": row["pipeline"], "is_distilled": row.get("distilled", False)}
        own = {key: type(getattr(ModelDefaults(), key))(value) for key, value in row.get("defaults", {}).items()}
        bundled = "repo" not in row
        defaults = (
            read_defaults(bundled_folder(name) / FILE)
            if bundled
            else FAMILIES[config["_class_name"]].defaults(config, index)
        )
        yield CatalogueEntry(
            name,
            row.get("repo"),
            row["licence"],
            row.get("gated", False),
            row["description"],
            index,
            config,
            tuple(
                Part(part["class"], *(part.get(size, 0) for size in ("all", "block", "layer", "next", "width")))
                for part in parts
            ),
            replace(defaults, **own),
            row.get("follows", ""),
        )


CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in read_catalogue()}
