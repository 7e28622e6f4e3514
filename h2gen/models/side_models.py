"""Models besides the one that paints, such as ControlNets: downloaded from huggingface.co, or found in its cache."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from h2gen.errors import ModelError
from h2gen.models.catalogue import Checkpoint
from h2gen.models.defaults import ModelDefaults
from h2gen.models.files import weight_files
from h2gen.models.hub import VARIANTS, cached_file, reach
from h2gen.models.translate_errors import translated
from h2gen.wording import printable


def download_part(repo: str, inside: str, marker: str, patterns: Collection[str] = ()) -> Path:
    """A model that is not a whole pipeline, downloaded from a repository if it is not on this machine yet.

    Args:
        repo: such as "InstantX/FLUX.1-dev-Controlnet-Union".
        inside: a file or a folder in it; the whole repository if empty.
        marker: the file that every such folder has.
        patterns: of the files to download; by default the weights.

    Raises:
        ModelError: it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    found = cached_part(repo, inside, marker)
    if found is not None:
        return found
    file = inside if inside.endswith(".safetensors") else f"{inside}/{marker}".lstrip("/")
    with translated(Checkpoint(repo, "hub", repo, None, ModelDefaults())):
        reach(repo, file)
        try:
            path = Path(hf_hub_download(repo, file))
        except RemoteEntryNotFoundError as error:
            raise ModelError(f"The repository {repo!r} has no {printable(file)!r}; check the name.") from error
        if file == inside:
            return path
        start = f"{inside}/" if inside else ""
        wanted = patterns or ("*.safetensors", "*.safetensors.index.json")
        snapshot_download(repo, allow_patterns=[start + each for each in wanted], ignore_patterns=VARIANTS)
        return path.parent


def cached_part(repo: str, inside: str, marker: str) -> Path | None:
    """Where ``download_part`` has put something; None if it was not downloaded. Does not use the network."""
    single = inside.endswith(".safetensors")
    found = cached_file(repo, inside if single else f"{inside}/{marker}".lstrip("/"))
    if found is None:
        return None
    path = found if single else found.parent
    try:
        for folder in (path, *path.iterdir()) if path.is_dir() else ():
            if (folder / "config.json").is_file():
                weight_files(folder)
    except ModelError:
        return None
    return path
