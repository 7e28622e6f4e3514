"""FLUX.1 Redux: its own small model, which turns a picture into text tokens; found, checked and loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from h2gen.errors import ModelError, SettingError
from h2gen.families.flux1 import REDUX
from h2gen.files import expanded
from h2gen.models import files
from h2gen.models.catalogue import REPO_ID
from h2gen.models.files import INDEX, shown
from h2gen.models.side_models import cached_part, download_part
from h2gen.wording import printable

ALIAS, REPO = "redux", "black-forest-labs/FLUX.1-Redux-dev"
WIDTH = 4096
"""Channels of its text tokens, which are T5's."""
_PARTS = ("image_encoder", "image_embedder")
_PROCESSOR = "feature_extractor"
_PATTERNS = (INDEX, f"{_PROCESSOR}/*.json", *(f"{part}/*" for part in _PARTS))


def find_redux(name: str) -> tuple[Path | str, str]:
    """Where a Redux model is, downloaded if it has to be, and its name in metadata.

    Args:
        name: ``redux``, a folder in diffusers' layout, or a repository.

    Raises:
        SettingError: there is none; the message begins after the option's name.
        ModelError: it cannot be downloaded, is damaged, or is not a Redux model.
    """
    path = expanded(name)
    if name != ALIAS and path.is_dir():
        check_redux(path)
        return Path(os.path.abspath(path)), printable(path.name)
    repo = REPO if name == ALIAS else name
    if not REPO_ID.fullmatch(repo) or path.exists():
        raise SettingError(
            f"there is no Redux model {printable(name)!r}; give {ALIAS}, a folder in diffusers' layout, or a "
            "repository such as owner/name."
        )
    folder = download_part(repo, "", INDEX, _PATTERNS)
    check_redux(folder)
    return folder, repo


def known_redux(name: str) -> Path | None:
    """Where a Redux model is that a picture names, if it is a repository that was downloaded before."""
    return cached_part(name, "", INDEX) if REPO_ID.fullmatch(name) else None


def parts_of_redux(folder: Path) -> list[Path]:
    """The folders of a Redux model that have weights."""
    return [folder / part for part in _PARTS]


def files_of_redux(folder: Path) -> list[Path]:
    """The files that are read to load a Redux model.

    Raises:
        ModelError: weights are missing.
    """
    weights = [file for part in parts_of_redux(folder) for file in files.files_of_part(part)]
    return [folder / INDEX, *sorted((folder / _PROCESSOR).glob("*.json")), *weights]


def hash_redux(folder: Path | str) -> str:
    """The hash of a Redux model's weights."""
    from h2gen.models.content_hash import files_hash

    return files_hash([file for part in parts_of_redux(Path(folder)) for file in files.weight_files(part)])


def check_redux(folder: Path) -> None:
    """Check that a folder holds a whole Redux model.

    Raises:
        ModelError: it does not.
    """
    if not (folder / INDEX).is_file() or files.read_json(folder / INDEX).get("_class_name") != REDUX:
        raise ModelError(
            f"{shown(folder)} is not a Redux model in diffusers' layout: its {INDEX} does not say {REDUX}."
        )
    for part in (*_PARTS, _PROCESSOR):
        if not (folder / part).is_dir():
            raise ModelError(f"{shown(folder / part)} is missing; {files.again(folder / part / '*')}.")
    for weights in parts_of_redux(folder):
        files.weight_files(weights)


def text_width(folder: Path) -> int:
    """The channels of the text tokens that a Redux model makes.

    Raises:
        ModelError: its configuration does not say.
    """
    config = folder / "image_embedder" / "config.json"
    width = files.read_json(config).get("txt_in_features", WIDTH)
    if not isinstance(width, int):
        raise ModelError(
            f"{shown(config)} is damaged: txt_in_features is {printable(repr(width))}; {files.again(config)}."
        )
    return width


def load_redux(folder: Path, dtype: Any) -> Any:
    """A Redux model as diffusers' pipeline, in main memory, without text encoders.

    Raises:
        ModelError: it is damaged or lacks weights.
    """
    import diffusers
    import transformers
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    from h2gen.models.load import load_model, quiet

    with quiet():
        pipe = getattr(diffusers, REDUX)(
            image_encoder=load_model(transformers.SiglipVisionModel, folder / "image_encoder", dtype),
            image_embedder=load_model(ReduxImageEncoder, folder / "image_embedder", dtype),
            feature_extractor=transformers.SiglipImageProcessor.from_pretrained(
                folder / _PROCESSOR, local_files_only=True
            ),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
