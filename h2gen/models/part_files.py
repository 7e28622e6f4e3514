"""Files that hold a text encoder or an autoencoder, alone or beside a transformer; only their headers are read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.errors import ModelError
from h2gen.families import recognize
from h2gen.families.single_file import other_kind
from h2gen.files import expanded
from h2gen.models.files import WEIGHTS, components, shown, tensors_of
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.models.catalogue import Checkpoint

TRANSFORMER, VAE, T5, CLIP, CHAT = "transformer", "VAE", "T5", "CLIP", "chat"

_MARKS = {
    VAE: re.compile(
        r"(?:^|\.)(?=(?:en|de)coder\.(?:conv_in|up_blocks|down_blocks|up\.|down\.|layers\.\d+\.(?:conv\.)?\d*\.?(?:weight|bias)))"
    ),
    T5: re.compile(r"(?:^|\.)(?=encoder\.block\.\d+\.layer\.|enc\.blk\.\d+\.)"),
    CLIP: re.compile(
        r"(?:^|\.)(?=text_model\.(?:encoder|embeddings)\.)|^(?=embeddings\.token_embedding\.|encoder\.layers\.\d+\.layer_norm)"
    ),
    CHAT: re.compile(r"(?:^|(?<!encoder)\.)(?=(?:model\.|language_model\.)*layers\.\d+\.self_attn\.|blk\.\d+\.attn_q)"),
}
"""By the kind of part: where the part's own names begin in the names of a file. CLIP has names of a chat model too."""

_TITLES = {VAE: "an autoencoder", T5: "a T5 text encoder", CLIP: "a CLIP text encoder", CHAT: "a chat model"}


@dataclass(frozen=True)
class PartFile:
    """A part of a model in a file.

    Args:
        path: of the file; of a folder in diffusers' layout for a transformer.
        kind: one of the kinds above.
        prefix: before the part's names in the file, such as ``text_encoders.clip_l.transformer.``.
    """

    path: Path
    kind: str
    prefix: str = ""

    @property
    def title(self) -> str:
        """Such as ``a T5 text encoder``."""
        return _TITLES[self.kind]

    @property
    def option(self) -> str:
        """The option that gives it."""
        return "--vae" if self.kind == VAE else "--text-encoder"


def sections(path: Path, names: Iterable[str]) -> list[PartFile]:
    """The text encoders and the autoencoder among the tensors of a file."""
    found: dict[str, PartFile] = {}
    for name in names:
        for kind, mark in _MARKS.items():
            match = mark.search(name)
            if match is not None:
                if kind not in found:
                    found[kind] = PartFile(path, kind, name[: match.end()])
                break
    return list(found.values())


def open_parts(vae: str | None, text_encoders: Sequence[str]) -> tuple[PartFile, ...]:
    """The parts in files that a user gave.

    Raises:
        ModelError: a file is missing, damaged or something else, or two are of the same kind.
    """
    wanted = [*([] if vae is None else [("autoencoder", vae)]), *(("text encoder", name) for name in text_encoders)]
    found: dict[str, PartFile] = {}
    for what, name in wanted:
        part = _open(what, name)
        if part.kind in found:
            raise ModelError(f"{name!r} and {str(found[part.kind].path)!r} are both {part.title}; give one.")
        found[part.kind] = part
    return tuple(found.values())


def _open(what: str, name: str) -> PartFile:
    path = expanded(name)
    if not os.path.isfile(path):  # unlike the path's own method it takes any name
        folder = "; give the file in it" if os.path.isdir(path) else "; check the path"
        raise ModelError(f"There is no file {printable(name)!r} for the {what}{folder}.")
    if path.suffix.lower() not in WEIGHTS:
        raise ModelError(f"{printable(name)!r} is not a .safetensors or .gguf file; give the {what} as one of these.")
    names = tensors_of(path).tensors
    family, parts = recognize(names), sections(path, names)
    fitting = [part for part in parts if (part.kind == VAE) == (what == "autoencoder")]
    if family is None and len(fitting) == 1 and len(parts) == 1:
        return fitting[0]
    if family is not None:
        is_a = f"a transformer of {family.title}; give it with --model"
    elif len(parts) == 1:
        is_a = f"{parts[0].title}; give it with {parts[0].option}"
    elif parts:
        is_a = "a file with several parts; give a file for each part"
    else:
        other = other_kind(names)
        is_a = f"{other.what if other else 'something else'}; give another file"
    raise ModelError(f"{printable(name)!r} is not {'an' if what == 'autoencoder' else 'a'} {what} but {is_a}.")


def parts_of(checkpoint: Checkpoint) -> tuple[PartFile, ...]:
    """All parts of a checkpoint that its base does not supply: the transformer and, with it, what its file has too.

    A file that was given for a part comes before the same part in the transformer's file.

    Raises:
        ModelError: the file is damaged.
    """
    if checkpoint.base is None:
        return checkpoint.parts
    path = Path(checkpoint.location)
    if checkpoint.kind == "transformer":
        return (PartFile(path, TRANSFORMER), *checkpoint.parts)
    given = {part.kind for part in checkpoint.parts}
    inside = [part for part in sections_beside(path) if part.kind not in given]
    return (PartFile(path, TRANSFORMER), *checkpoint.parts, *inside)


def sections_beside(path: Path) -> list[PartFile]:
    """The other parts in a file with a transformer: a whole checkpoint has them behind prefixes."""
    names = tensors_of(path).tensors
    family = recognize(names)
    if family is None:
        return []  # opening it as a transformer reports what it is
    prefix = family.prefix(names) or ""
    return [part for part in sections(path, names) if part.prefix and part.prefix != prefix]


def by_component(parts: Sequence[PartFile], index: Mapping[str, Any]) -> dict[str, PartFile]:
    """The parts by their names in a model's ``model_index.json``, such as ``text_encoder_2``; others are left out."""
    found: dict[str, PartFile] = {}
    for name, (_, cls) in components(dict(index)).items():
        kind = name if name == TRANSFORMER else VAE if name == "vae" else _kind_of(cls) if "text_enc" in name else None
        for part in parts:
            if part.kind == kind:
                found[name] = part
    return found


def _kind_of(cls: str) -> str:
    """The kind of a text encoder, by its class in transformers."""
    return CLIP if cls.startswith("CLIP") else T5 if cls.startswith(("T5", "UMT5")) else CHAT


def check_all_fit(parts: Sequence[PartFile], index: Mapping[str, Any], base: str) -> None:
    """Check that a model has all the parts that files were given for.

    Args:
        parts: those that the user gave.
        index: the model's ``model_index.json``.
        base: the model's name.

    Raises:
        ModelError: it lacks one.
    """
    used = by_component(parts, index).values()
    for part in parts:
        if part not in used:
            has = [_TITLES[_kind_of(cls)] for name, (_, cls) in components(dict(index)).items() if "text_enc" in name]
            raise ModelError(
                f"{shown(part.path)} is {part.title}, but {base!r} has {' and '.join(has) or 'no text encoder'}; "
                "leave it out, or give another file."
            )
