"""How the name of a model, a folder or a file is resolved.

Nothing imported here loads torch: the command line needs the names before any model.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from h2gen.errors import ModelError
from h2gen.families import recognize
from h2gen.families.single_file import Kind, other_kind
from h2gen.models.defaults import ModelDefaults, folder_defaults
from h2gen.models.entries import BUNDLED, CATALOGUE, CatalogueEntry, bundled_folder
from h2gen.models.files import PICKLES, WEIGHTS, tensors_of, transformer_in
from h2gen.models.part_files import PartFile, open_parts, sections_beside
from h2gen.wording import did_you_mean, printable

__all__ = ["BUNDLED", "CATALOGUE", "CatalogueEntry", "Checkpoint", "ModelDefaults", "model_name", "resolve"]

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is; nothing has been loaded yet.

    Args:
        name: as the user gave it.
        kind: "bundled", "hub", "folder" (in diffusers' layout), "file" (a transformer, and maybe more) or
            "transformer" (a folder with only a transformer).
        location: the id of the repository for "hub", otherwise a path.
        base: for a "file" or a "transformer", the checkpoint that supplies the other parts.
        defaults: for settings that the user does not give.
        parts: files that take the place of the model's own text encoders and autoencoder.
    """

    name: str
    kind: str
    location: str | Path
    base: Checkpoint | None
    defaults: ModelDefaults
    parts: tuple[PartFile, ...] = ()


def in_repository(name: str) -> tuple[str, str] | None:
    """A repository's id and what is named in it, such as ``("owner/name", "folder/file")``; None for any other name.

    A name may come from a picture's metadata: one that leaves the repository's folder is none.
    """
    owner, _, rest = name.partition("/")
    repo, _, inside = rest.partition("/")
    if not REPO_ID.fullmatch(f"{owner}/{repo}") or "\\" in inside:
        return None
    if inside and not {"", ".", ".."}.isdisjoint(inside.split("/")):
        return None
    return f"{owner}/{repo}", inside


def model_name(checkpoint: Checkpoint) -> str:
    """The name that is stored in a picture: an alias or a repository's id as given, only the last part of a path."""
    return checkpoint.name if checkpoint.kind in ("bundled", "hub") else Path(checkpoint.location).resolve().name


def resolve(
    name: str, base: str | None = None, vae: str | None = None, text_encoder: str | Sequence[str] | None = None
) -> Checkpoint:
    """Find the checkpoint that a name refers to: an alias, a single file, a folder or a repository's id, in this order.

    Args:
        name: such as "dev", "./my-flux", "flux1-dev-Q4_K_S.gguf" or "owner/name".
        base: for a single file, the model that supplies its text encoders and autoencoder.
        vae: a file to take the autoencoder from.
        text_encoder: files to take text encoders from.

    Raises:
        ModelError: nothing has this name, a file has no base, or its format is not supported.
    """
    found = _resolve(name, base)
    encoders = (text_encoder,) if isinstance(text_encoder, str) else tuple(text_encoder or ())
    return replace(found, parts=open_parts(vae, encoders)) if vae is not None or encoders else found


def _resolve(name: str, base: str | None) -> Checkpoint:
    path = _path(name)
    if name not in CATALOGUE and path is not None and _is(path.is_file):
        return _file(name, path, base)
    if base is not None and name not in CATALOGUE and path is not None and _is(path.is_dir):
        part = transformer_in(path)
        if part is not None:
            parts = _parts(base)
            return Checkpoint(name, "transformer", part, parts, parts.defaults)
    found = _whole(name, path)
    if base is not None:
        raise ModelError(f"The model {name!r} is a whole model, so it takes no base; leave out the base {base!r}.")
    return found


def needs_base(name: str) -> bool:
    """Whether a name refers to a single file or a folder that holds only a transformer."""
    path = _path(name)
    folder = name not in CATALOGUE and path is not None and _is(path.is_dir)
    return name.lower().endswith(WEIGHTS) or bool(folder and path and transformer_in(path))


def _whole(name: str, path: Path | None) -> Checkpoint:
    """A model that is not a single file."""
    if name in CATALOGUE:
        return _entry(name, CATALOGUE[name])
    if path is not None and _is(path.is_dir):
        return Checkpoint(name, "folder", path, None, folder_defaults(path))
    if name.lower().startswith(("http://", "https://")):
        part = REPO_ID.search(name.partition("://")[2].partition("/")[2])
        repo = repr(part[0]) if part and "huggingface.co/" in name else "such as owner/name"
        raise ModelError(
            f"{name!r} is a web address; give the repository, {repo}, or download the file and give its path."
        )
    if name.lower().endswith(WEIGHTS + PICKLES):
        raise ModelError(f"There is no file {name!r}; check the path{_how_to_download(name)}.")
    looks_like_path = name.startswith((".", "/", "~"))
    if not looks_like_path and REPO_ID.fullmatch(name):
        twin = next((entry for entry in CATALOGUE.values() if (entry.repo or "").lower() == name.lower()), None)
        return _entry(name, twin) if twin else Checkpoint(name, "hub", name, None, ModelDefaults())
    if looks_like_path or "\\" in name or name.count("/") > 1:
        raise ModelError(f"There is no model folder or file at {name!r}; check the path.")
    raise ModelError(
        f"There is no model called {name!r}{did_you_mean(name, CATALOGUE)} Give one of {', '.join(CATALOGUE)}, a "
        "folder in diffusers' layout, a .safetensors or .gguf file with --base, or a repository such as owner/name."
    )


def _how_to_download(name: str) -> str:
    """For a file in a repository, such as ``owner/name/flux.gguf``."""
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    known = file and REPO_ID.fullmatch(f"{owner}/{repo}")
    command = f"hf download {owner}/{repo} {shlex.quote(printable(file))}"
    return f", or run `{command}` and give the path that it prints" if known else ""


def _path(name: str) -> Path | None:
    try:
        return Path(name).expanduser() if name else None
    except (RuntimeError, ValueError):  # the home folder of an unknown user
        return None


def _is(test: Callable[[], bool]) -> bool:
    """Run a test of a path; a name that the system cannot look up is not a path."""
    try:
        return test()
    except (OSError, ValueError):
        return False


def _entry(name: str, entry: CatalogueEntry) -> Checkpoint:
    if entry.repo is None:
        return Checkpoint(name, "bundled", bundled_folder(name), None, entry.defaults)
    return Checkpoint(name, "hub", entry.repo, None, entry.defaults)


def _other_kind(path: Path) -> Kind | None:
    """What a file holds that is not a transformer; None if its names do not say.

    Raises:
        ModelError: the file is damaged.
    """
    names = tensors_of(path).tensors
    return other_kind(names, recognize(names), path)


def _base_for(path: Path) -> str:
    """A model that may supply the parts that a file with a transformer lacks."""
    family = recognize(tensors_of(path).tensors)
    bases = [entry.name for entry in CATALOGUE.values() if entry.repo and entry.of_family is family]
    return bases[0] if bases and "dev" not in bases else "dev"


def _file(name: str, path: Path, base: str | None) -> Checkpoint:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise ModelError(
            f"{name!r} is a pickle, which can run code when it is opened; use a .safetensors or .gguf file."
        )
    if suffix not in WEIGHTS:
        raise ModelError(f"{name!r} is not a model; a single file must be .safetensors or .gguf.")
    if base is None:
        kind = _other_kind(path)
        if kind is not None:  # a LoRA or a VAE, which no base helps
            raise kind.refusal(path)
        if sections_beside(path):
            raise ModelError(
                f"{name!r} lacks configurations and tokenizers; name a model that has them: --base {_base_for(path)}."
            )
        raise ModelError(
            f"{name!r} holds only a transformer; name the model that supplies its other parts, such as --base "
            f"{_base_for(path)}."
        )
    parts = _parts(base)
    return Checkpoint(name, "file", path, parts, parts.defaults)


def _parts(base: str) -> Checkpoint:
    """The checkpoint that supplies the parts that a file or a folder lacks."""
    other = _path(base)
    if base not in CATALOGUE and other is not None and _is(other.is_file):
        raise ModelError(f"The base {base!r} is a single file too; give a whole model as the base, such as --base dev.")
    return resolve(base)
