"""What the main process and its workers send each other: frozen messages, pickled through a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from h2gen.cache.summary import Summary
from h2gen.cache.trace import StepRecord
from h2gen.errors import H2GenError
from h2gen.generation.unread import Unread
from h2gen.models.attention_names import DEFAULT
from h2gen.models.catalogue import Checkpoint
from h2gen.models.footprint import Work
from h2gen.models.load_options import LoadOptions
from h2gen.settings.values import Settings


@dataclass(frozen=True)
class Model:
    """What a worker loads, and how.

    ``content_hash`` goes into the pictures' metadata; ``threads`` limits torch on the CPU when several workers share
    its cores; ``work`` is what a batch takes besides the weights; ``attention`` is that of all pictures.
    """

    checkpoint: Checkpoint
    options: LoadOptions
    content_hash: str
    threads: int | None = None
    work: Work | None = None
    attention: str = DEFAULT


@dataclass(frozen=True)
class Task:
    """A picture to make.

    ``job`` is the job's id. ``notes`` is the JSON text of further keys of its line in the prompt file. ``steps`` asks
    for a message per step, ``metadata`` and ``sidecar`` for a description of how it was made, ``tiled`` for decoding in
    tiles.
    """

    settings: Settings
    format: str
    preset: str | None
    job: str
    source: str
    notes: str | None
    steps: bool
    metadata: bool
    sidecar: bool
    tiled: bool = False


@dataclass(frozen=True)
class Ready:
    """The model is loaded. ``offload`` is the mode in use, ``warnings`` were issued while it was loaded, and
    ``refused`` are the modes that its weights do not work with."""

    device: str
    dtype: str
    offload: str
    warnings: tuple[str, ...] = ()
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Stepped:
    """A forward pass of a current picture; ``record.picture`` is the index of its task."""

    record: StepRecord


@dataclass(frozen=True)
class PictureMade:
    """The next of the current pictures, in the order of their tasks: its file's bytes and its sidecar's text.

    ``described`` is False if its metadata was too long for its format; ``metadata`` is what they are or would be.
    ``summary`` is None if the cache was off; ``unread`` is what the model did not read of the prompts; ``advice`` says
    what to change if the cache reused nothing.
    """

    data: bytes = field(repr=False)
    sidecar: str | None = field(repr=False)
    described: bool
    metadata: Mapping[str, Any] = field(repr=False)
    settings: Settings
    seconds: float
    summary: Summary | None
    nan_with_cache: bool
    unread: tuple[Unread, ...] = ()
    advice: str | None = None


@dataclass(frozen=True)
class Failed:
    """None of the current pictures, or of those left of them, could be made.

    ``again`` says whether another attempt could help, ``exhausted`` that memory ran out, and ``sick`` that
    the process ended itself because it might fail again.
    """

    error: str
    again: bool
    exhausted: bool = False
    sick: bool = False


@dataclass(frozen=True)
class Stopped:
    """The current pictures, or those left of them, were abandoned, as asked."""


@dataclass(frozen=True)
class Broken:
    """The model could not be loaded."""

    error: H2GenError


Message = Ready | Stepped | PictureMade | Failed | Stopped | Broken
