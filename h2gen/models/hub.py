"""Download a checkpoint from huggingface.co, or find it in the local cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from h2gen.errors import ModelError
from h2gen.models.entries import CatalogueEntry, bundled_folder
from h2gen.models.files import INDEX, MODULAR_INDEX, check_parts, components, read_index, weight_files
from h2gen.models.part_files import PartFile, by_component

# Other precisions that a repository may hold as well.
VARIANTS = ["*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*", "*.fp8.*"]
WITH_VARIANTS = ("safetensors", "safetensors.index.*.json")
TEXT = ("json", "txt", "model", "jinja")


def download(repo: str, *, parts: Sequence[PartFile] = ()) -> Path:
    """The folder with a repository's pipeline, downloaded if it is not on this machine yet.

    A complete download is used without asking the network for a newer one: the same name keeps making the same
    pictures, and a machine without a network does not wait for one.

    Args:
        repo: such as "black-forest-labs/FLUX.1-dev".
        parts: files that supply other weights, which are then not needed.

    Raises:
        ModelError: it holds no pipeline that h2gen loads.
        Exception: one of huggingface_hub's, for ``translated`` to translate.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    folder = cached(repo)
    lacking = "" if folder is None else _lacking(folder, parts)
    if folder is not None and not lacking:
        return folder
    try:
        reach(repo, INDEX)
    except OfflineModeIsEnabled as error:
        if folder is None:
            raise
        raise ModelError(
            f"{repo!r} is not complete on this machine, and huggingface.co cannot be reached ({lacking.rstrip('.')}); "
            "go online to download the rest; HF_HUB_OFFLINE must not be set."
        ) from error
    # The index comes first: it says which other files are needed, and whether h2gen supports the pipeline at all.
    try:
        found = Path(hf_hub_download(repo, INDEX))
    except EntryNotFoundError as error:
        try:
            found = Path(hf_hub_download(repo, MODULAR_INDEX))
        except EntryNotFoundError:
            raise error from None
    index = read_index(found.parent)
    patterns, without = [found.name], by_component(parts, index)
    for name in components(index):
        patterns += [f"{name}/*.{suffix}" for suffix in TEXT]
        if name not in without:
            patterns.append(f"{name}/*.safetensors")
    folder = Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=VARIANTS))
    bare = [name for name in components(index) if name not in without and _has_no_weights(folder / name)]
    if bare:  # the repository may hold them in another precision only
        snapshot_download(repo, allow_patterns=[f"{name}/*.{ending}" for name in bare for ending in WITH_VARIANTS])
    return folder


def transformer_config(repo: str) -> Path:
    """The file with the configuration of a repository's transformer; see ``single_file``."""
    return single_file(repo, "transformer/config.json")


def single_file(repo: str, file: str) -> Path:
    """A file of a repository, downloaded without any others if it is missing.

    Raises:
        Exception: one of huggingface_hub's, for ``translated`` to translate.
    """
    from huggingface_hub import hf_hub_download

    here = cached_file(repo, file)
    if here is not None:
        return here
    reach(repo, file)
    return Path(hf_hub_download(repo, file))


def reach(repo: str, file: str) -> None:
    """Ask once for a file of a repository, before anything is downloaded.

    Without a network this fails at once, while the hub's client retries for half a minute and says so at each try.

    Raises:
        OfflineModeIsEnabled: the hub cannot be reached. Its answer does not matter: the download reports errors.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        get_hf_file_metadata(hf_hub_url(repo, file))
    except HfHubHTTPError:
        pass
    except Exception as error:
        if not is_connection_error(error):
            raise
        raise OfflineModeIsEnabled(f"{repo} cannot be reached") from error


def is_connection_error(error: BaseException) -> bool:
    """Whether the connection failed; an error that the server sends is not one."""
    # By module name, since the hub's HTTP library has changed before. All its errors are about the connection.
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("http")


def absent(name: str, needs: str, *, partly: bool = False) -> str:
    """What a dry run says of a model that is not on this machine: what a run would do about it.

    Args:
        name: of the model.
        needs: what a run would download.
        partly: a part of it is there.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    said = f"{name!r} is not {'complete ' if partly else ''}on this machine"
    if HF_HUB_OFFLINE:
        return f"{said}, and HF_HUB_OFFLINE is set, so a run would fail; unset it to download {needs}."
    return f"{said}; {needs} would be downloaded."


def local_path(entry: CatalogueEntry) -> Path | None:
    """The folder of a model of the catalogue; None if it was not downloaded. Does not use the network."""
    return bundled_folder(entry.name) if entry.repo is None else cached(entry.repo)


def is_downloaded(entry: CatalogueEntry) -> bool:
    """Whether a model of the catalogue can be loaded without a network: all of its parts are on this machine."""
    folder = local_path(entry)
    return folder is not None and _complete(folder)


def is_complete(repo: str, parts: Sequence[PartFile] = ()) -> bool:
    """Whether a repository can be loaded without a network, with files that supply other parts. Does not use it."""
    folder = cached(repo)
    return folder is not None and _complete(folder, parts)


def cached(repo: str) -> Path | None:
    """The folder with what was downloaded of a repository; None if nothing was. Does not use the network."""
    for name in (INDEX, MODULAR_INDEX):
        index = cached_file(repo, name)
        if index is not None:
            return index.parent
    return None


def cached_file(repo: str, file: str) -> Path | None:
    """Where a file of a repository is; None if it was not downloaded. Does not use the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) else None


def _has_no_weights(part: Path) -> bool:
    """Whether a part that needs weights has no file of them at all."""
    return (part / "config.json").is_file() and not any(part.glob("*.safetensors"))


def _complete(folder: Path, parts: Sequence[PartFile] = ()) -> bool:
    return not _lacking(folder, parts)


def _lacking(folder: Path, parts: Sequence[PartFile] = ()) -> str:
    """What keeps a model from being loaded from its folder; empty if nothing does."""
    try:
        index = read_index(folder)
        check_parts(folder, index)
        without = by_component(parts, index)
        for name in components(index):
            if name not in without and (folder / name / "config.json").is_file():  # tokenizers and schedulers have none
                weight_files(folder / name)
    except ModelError as error:
        return str(error)
    return ""
