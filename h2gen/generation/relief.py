"""What to try when memory runs out: more offloading and tiled decoding (after smaller batches, in ``session``)."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from h2gen.errors import OutOfMemory
from h2gen.models.choices import stronger

if TYPE_CHECKING:
    from h2gen.generation.session import Session
    from h2gen.models import Checkpoint
    from h2gen.models.footprint import Work
    from h2gen.models.load_options import LoadOptions
    from h2gen.settings.values import Settings

_T = TypeVar("_T")


@dataclass(frozen=True)
class Relief:
    """A way of making a picture that needs less memory than the one that failed.

    Args:
        device: where the picture is made.
        offload: the offloading to load the model with.
        stronger: whether that is more offloading than before.
        tiled: whether the picture is decoded in tiles, which changes it a little.
    """

    device: str
    offload: str
    stronger: bool
    tiled: bool = True

    def __str__(self) -> str:
        offloading = f"--offload {self.offload} and " if self.stronger else ""
        return f"Out of memory on {self.device}; trying again with {offloading}tiled decoding."


def next_relief(device: str, offload: str, tiled: bool, refused: Collection[str] = ()) -> Relief | None:
    """The next thing to try after memory ran out; None if nothing is left.

    Args:
        device: such as "cpu" or "cuda:0".
        offload: the mode in use, never "auto".
        tiled: whether the picture was decoded in tiles already.
        refused: the modes that the model's weights do not work with.
    """
    more = None if device.split(":")[0] == "cpu" else stronger(offload, refused)
    if more is None and tiled:
        return None
    return Relief(device, more or offload, stronger=more is not None)


def with_relief(
    session: Session,
    size: tuple[int, int],
    attempt: Callable[[bool], _T],
    *,
    tiled: bool = False,
    on_relief: Callable[[Relief], None] = lambda _relief: None,
) -> _T:
    """Call ``attempt``, and again with each relief until memory suffices.

    Relief is permanent: the session's later pictures use the same offloading, and those of this size are tiled.

    Args:
        session: is loaded again if it has to offload more: its ``pipe`` is then another object.
        size: width and height of the pictures, in pixels.
        attempt: makes pictures with ``session``; its argument says whether to decode them in tiles.
        tiled: decode in tiles from the start.
        on_relief: is called before each further attempt.

    Raises:
        OutOfMemory: memory did not suffice even with all relief. If the model cannot be loaded with more offloading,
            tiles are tried without, and the error is the one before that.
    """
    from h2gen.models.memory import refused_by

    tiled = tiled or size in session.tiled_sizes
    unloadable: OutOfMemory | None = None
    """The error that stands, once the model could not be loaded with more offloading."""
    while True:
        try:
            return attempt(tiled)
        except OutOfMemory as error:
            let_go(error)
            relief = None
            if unloadable is None:
                relief = next_relief(str(session.device), session.offload, tiled, refused_by(session.pipe))
            failure = unloadable or error
        if relief is None:
            raise failure
        on_relief(relief)
        if not _loaded_again(session, relief.offload):
            if tiled or not session.is_loaded:
                raise failure
            unloadable = failure
            on_relief(replace(relief, offload=session.offload, stronger=False))
        tiled = relief.tiled
        session.tiled_sizes.add(size)


def _loaded_again(session: Session, offload: str) -> bool:
    try:
        session.relieve(offload)
    except Exception:  # noqa: BLE001 - that memory ran out is what the user has to know, not what came of it
        return False
    return True


def let_go(error: BaseException) -> None:
    """Drop what the frames of an error's traceback, and of its causes', hold: the tensors of what failed."""
    following: BaseException | None = error
    while following is not None:
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__


def out_of_memory(session: Session, settings: Settings) -> OutOfMemory:
    """The error after memory ran out for a picture, with advice."""
    from h2gen.models.memory import refused_by

    size, device = f"{settings.width}x{settings.height}", session.device
    what_to_do = advice(device.type, session.offload, refused_by(session.pipe))
    return OutOfMemory(f"Out of memory on {device} at {size}; {what_to_do}.")


def advice(device: str, offload: str, refused: Collection[str] = ()) -> str:
    """Advice for the user after memory ran out; the arguments are those of ``next_relief``."""
    more = stronger(offload, refused)
    if device == "cpu" or more is None:
        return "use a smaller --size, a smaller model, or a .gguf version of it"
    return f"use --offload {more}, or a smaller --size"


def free_memory() -> None:
    """Free what a failed attempt left behind."""
    import torch

    gc.collect()
    for kind in (torch.cuda, torch.xpu, torch.mps):
        if kind.is_available():
            kind.empty_cache()


def load_or_advise(
    checkpoint: Checkpoint,
    options: LoadOptions,
    work: Work | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> tuple[Any, LoadOptions]:
    """The checkpoint's pipeline, and the options in use; see ``load_placed``.

    Args:
        work: what will be made; None takes the model's defaults.

    Raises:
        OutOfMemory: memory does not suffice for loading it; the message says what would help.
    """
    from h2gen.models import is_out_of_memory
    from h2gen.models.load import load_placed
    from h2gen.settings.workload import default_work

    try:
        return load_placed(checkpoint, options, default_work(checkpoint) if work is None else work, say)
    except Exception as error:
        if is_out_of_memory(error):
            # Not ``advice``: the size does not matter yet, and the device may still be called "auto".
            raise OutOfMemory(
                f"Out of memory while loading {checkpoint.name!r}; leave out --offload and --memory, close other "
                "programs, or use a smaller model or a .gguf version of it."
            ) from error
        raise
