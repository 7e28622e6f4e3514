"""LoRA files: found on the disk, in a repository or beside the bundled model, and checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from h2gen.errors import ModelError, SettingError
from h2gen.families import CONTROLLED, FAMILIES
from h2gen.families.lora import LoraFacts, read_lora
from h2gen.families.single_file import other_kind
from h2gen.files import expanded
from h2gen.models.catalogue import BUNDLED, Checkpoint, in_repository
from h2gen.models.defaults import ModelDefaults
from h2gen.models.facts import facts_of
from h2gen.models.files import PICKLES, WEIGHTS, read_header, shown
from h2gen.models.hub import cached_file, reach, single_file
from h2gen.models.translate_errors import explain
from h2gen.wording import did_you_mean, printable

SUFFIX = ".safetensors"
_USUAL = "pytorch_lora_weights.safetensors"
"""diffusers' name for the file; a repository that has it is assumed to hold one LoRA."""
_OURS = "tiny/"


def describe_lora(path: Path) -> LoraFacts:
    """What a LoRA file is for; only its header is read.

    Raises:
        ModelError: it is damaged, a pickle, or not a LoRA.
    """
    if path.suffix.lower() in PICKLES:
        raise ModelError(f"{shown(path)} is a pickle, which can run code when it is opened; use a {SUFFIX} file.")
    if path.suffix.lower() != SUFFIX:
        raise ModelError(f"{shown(path)} is not a LoRA; give a {SUFFIX} file.")
    shapes = {name: tensor.shape for name, tensor in read_header(path).tensors.items()}
    facts = read_lora(shapes)
    if facts is None:
        kind = other_kind(shapes)
        what = f", but {kind.what}" if kind else ": none of its tensors is named as in one"
        raise ModelError(f"{shown(path)} is not a LoRA{what}; check the path.")
    return facts


def check_loras(files: Sequence[tuple[Path, str]], checkpoint: Checkpoint) -> None:
    """Check that LoRAs are for a checkpoint's family, as far as that is known before anything is loaded.

    Args:
        files: of LoRAs, each with its name for messages.
        checkpoint: the model; it is not loaded.

    Raises:
        SettingError: one is for another model, or for nothing that diffusers can load.
    """
    model = facts_of(checkpoint)
    family = None if model is None else model.family.title
    width = None if model is None else _width(model.config)
    control = ""
    for path, name in files:
        facts = describe_lora(path)
        called = f"The LoRA {printable(name)!r}"
        if facts.unsupported:
            raise SettingError(f"{called} has {facts.unsupported}, which diffusers does not load; use another version.")
        if facts.control and model is not None and model.pipeline not in CONTROLLED:
            raise SettingError(
                f"{called} is a Control LoRA, for a model that makes pictures from a prompt, such as dev; "
                f"{checkpoint.name!r} is not one."
            )
        if facts.control and control:
            raise SettingError(f"{called} and {control} are Control LoRAs, and only one can be used at a time.")
        control = repr(printable(name)) if facts.control else control
        if not facts.families or (family is not None and family not in facts.families):
            ours = f"h2gen supports {', '.join(each.title for each in FAMILIES.values())}"
            raise SettingError(f"{called} is {facts}; {f'{checkpoint.name!r} is {family}' if family else ours}.")
        if width and facts.width and width != facts.width:
            raise SettingError(
                f"{called} is {facts}, for a width of {facts.width}; {checkpoint.name!r} is {family} with a width of "
                f"{width}."
            )


def is_control_lora(path: Path) -> bool:
    """Whether a file is a Control LoRA, which makes a model follow a picture. Only its header is read."""
    return describe_lora(path).control


def find_lora(name: str) -> tuple[Path, str]:
    """Where a LoRA is, downloaded if need be, and its name in metadata.

    Args:
        name: a path, ``owner/repo``, ``owner/repo/folder/file.safetensors``, or ``tiny/STYLE`` for the bundled model.

    Raises:
        UsageError: there is none, or it is not a LoRA.
    """
    path = expanded(name)
    if os.path.isdir(path):
        raise SettingError(f"{printable(name)!r} is a folder; give a {SUFFIX} file in it.")
    if os.path.isfile(path):
        found, known = Path(os.path.abspath(path)), printable(path.name)
    elif name.startswith(_OURS):
        found, known = _bundled(name), name
    else:
        repo, file = _split(name)
        found, file = _downloaded(repo, file)
        known = f"{repo}/{file}"
    describe_lora(found)
    return found, known


def known_lora(name: str) -> Path | None:
    """Where a LoRA with a recorded name is, if it ships with h2gen or was downloaded under that name."""
    try:
        if name.startswith(_OURS):
            return _bundled(name)
        repo, file = _split(name)
        return None if file is None else cached_file(repo, file)
    except SettingError:
        return None


def _width(config: Mapping[str, Any]) -> int | None:
    """Features of a transformer's streams, by its ``config.json``."""
    heads, each = config.get("num_attention_heads"), config.get("attention_head_dim")
    return heads * each if isinstance(heads, int) and isinstance(each, int) else None


def _bundled(name: str) -> Path:
    files = {f"{_OURS}{path.stem}": path for path in sorted((BUNDLED / "loras").glob(f"*{SUFFIX}"))}
    if name not in files:
        known = f" These ship with h2gen: {', '.join(files)}." if files else ""
        raise SettingError(f"there is no LoRA {printable(name)!r}{did_you_mean(name, files)}{known}")
    return files[name]


def _split(name: str) -> tuple[str, str | None]:
    """A repository's id, and the file in it if one is named."""
    repo, file = in_repository(name) or ("", "")
    if not repo or (not file and repo.lower().endswith(WEIGHTS + PICKLES)):
        raise SettingError(f"there is no file {printable(name)!r}; check the path.")
    if file and not file.lower().endswith(SUFFIX):
        raise SettingError(f"there is no file {printable(name)!r}; in a repository, name a {SUFFIX} file.")
    return repo, file or None


def _downloaded(repo: str, file: str | None) -> tuple[Path, str]:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        if file is None:
            # One that was downloaded is used without asking for a newer one, as a model is.
            here = _downloaded_before(repo)
            file = here[0] if len(here) == 1 else _USUAL if _USUAL in here else _chosen(repo, _listed(repo, here))
        return single_file(repo, file), file
    except SettingError:
        raise
    except RemoteEntryNotFoundError as error:
        raise SettingError(f"the repository {repo!r} has no file {printable(str(file))!r}; check the name.") from error
    except Exception as error:
        checkpoint = Checkpoint(f"{repo}/{file}" if file else repo, "hub", repo, None, ModelDefaults())
        raise SettingError(explain(error, checkpoint)) from error


def _chosen(repo: str, names: Sequence[str]) -> str:
    if _USUAL in names:
        return _USUAL
    if len(names) == 1:
        return names[0]
    if not names:
        raise SettingError(f"the repository {repo!r} has no {SUFFIX} file; give a repository with a LoRA.")
    some = ", ".join(printable(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    raise SettingError(f"the repository {repo!r} has {len(names)} {SUFFIX} files; give one as {repo}/FILE: {some}.")


def _listed(repo: str, here: Sequence[str]) -> Sequence[str]:
    """The files of a repository that may be LoRAs; if it cannot be asked, those that are here already."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        reach(repo, _USUAL)
        return _that_may_be_loras(HfApi().list_repo_files(repo))
    except OfflineModeIsEnabled:
        if not here:
            raise
        return here


def _downloaded_before(repo: str) -> list[str]:
    """The files of a repository that may be LoRAs and are on this machine. Does not use the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return []
    return _that_may_be_loras(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _that_may_be_loras(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(SUFFIX))
