"""Translates errors of torch, diffusers, transformers and the hub into h2gen's; no other module does."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from h2gen.errors import H2GenError, ModelError
from h2gen.models.catalogue import CATALOGUE, Checkpoint
from h2gen.models.files import INDEX
from h2gen.models.hub import is_connection_error
from h2gen.wording import printable

NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
LONGEST = 200  # characters of another library's message


@contextmanager
def translated(checkpoint: Checkpoint) -> Iterator[None]:
    """Translate any error inside into a ``ModelError`` of one line, except for running out of memory."""
    from h2gen.models.memory import is_out_of_memory

    try:
        yield
    except H2GenError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(explain(error, checkpoint)) from error


def explain(error: BaseException, checkpoint: Checkpoint) -> str:
    """What went wrong and what to do about it, in one line."""
    from huggingface_hub import errors as hub

    # A single file is never downloaded, only its base is.
    name, source = repr(checkpoint.name), checkpoint.base or checkpoint
    repo = printable(str(source.location))
    # diffusers wraps the hub's errors in its own, so the causes count too. GatedRepoError is checked first, because it
    # is a RepositoryNotFoundError as well.
    chain = list(causes(error))
    if _any(chain, hub.GatedRepoError):
        return (
            f"{source.name!r} is gated: accept its licence on https://huggingface.co/{repo}, then run `hf auth login` "
            "or set HF_TOKEN."
        )
    if _any(chain, hub.RepositoryNotFoundError):
        return (
            f"There is no repository {repo!r} on huggingface.co, or it is private; check the name, and for a private "
            "one run `hf auth login` or set HF_TOKEN."
        )
    if _any(chain, hub.RemoteEntryNotFoundError):
        return f"{repo!r} is not a checkpoint in diffusers' layout: the repository has no {INDEX}."
    if _any(chain, hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError):
        return (
            f"{source.name!r} is not on this machine and huggingface.co cannot be reached; go online to download it"
            f"{_size(source)}; HF_HUB_OFFLINE must not be set."
        )
    if _any(chain, hub.HfHubHTTPError):
        return f"{source.name!r} cannot be downloaded from huggingface.co: {brief(error)}; try again later."
    if any(is_connection_error(cause) for cause in chain):
        return f"{source.name!r} cannot be downloaded: the connection failed; try again to continue the download."
    if any(isinstance(cause, OSError) and cause.errno in NO_SPACE for cause in chain):
        return f"{name} does not fit on the disk; free some space, or set HF_HOME to a folder on a larger disk."
    if _any(chain, PermissionError):
        return f"{name} cannot be read: {brief(error)}; check the permissions of its files."
    if _any(chain, ImportError):
        return f"{name} needs a package that is not installed: {brief(error)}"
    reason = brief(error).rstrip(".")
    return f"{name} cannot be loaded; its files are damaged or do not belong together ({reason}). Download it again."


def _size(checkpoint: Checkpoint) -> str:
    entry = CATALOGUE.get(checkpoint.name)
    return f" ({entry.download_gb:g} GB)" if entry is not None else ""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the error first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def brief(error: BaseException) -> str:
    """The beginning of an error's message, in one line."""
    text = printable(str(error)) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _any(chain: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(error, kinds) for error in chain)
