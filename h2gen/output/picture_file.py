"""Turns a finished picture into the bytes of its file, with its metadata, and the text of its sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from h2gen.output.metadata import Origin, describe, fitting, to_toml
from h2gen.output.save import encode

if TYPE_CHECKING:
    from h2gen.cache.trace import Summary
    from h2gen.generation.session import Result


@dataclass(frozen=True)
class PictureFile:
    """A picture's file, in memory.

    Args:
        data: the file's bytes.
        sidecar: text of the ``.toml`` next to it, or None.
        described: False if metadata was wanted but is too long for the format.
    """

    data: bytes = field(repr=False)
    sidecar: str | None = field(repr=False)
    described: bool


def picture_file(
    result: Result,
    summary: Summary | None,
    format: str,
    origin: Origin | None,
    *,
    preset: str | None = None,
    notes: Mapping[str, Any] | None = None,
    metadata: bool = True,
    sidecar: bool = False,
) -> PictureFile:
    """Encode a picture together with how it was made.

    Args:
        result: the picture.
        summary: of its trace, or None if there is no trace.
        format: one of ``FORMATS``.
        origin: what it was made with; None if neither metadata nor a sidecar is wanted.
        preset: the name of the preset its cache settings come from.
        notes: further facts to record.
        metadata: write metadata into the picture.
        sidecar: also write it as text for a ``.toml`` next to the picture.
    """
    if origin is None or not (metadata or sidecar):
        return PictureFile(encode(result.image, format), None, True)
    whole = describe(
        result.settings,
        origin,
        seconds=result.seconds,
        summary=summary,
        uncached=result.uncached,
        tiled=result.tiled,
        together=result.together,
        preset=preset,
        notes=notes,
    )
    inside = fitting(whole, format) if metadata else None
    data = encode(result.image, format, inside)
    return PictureFile(data, to_toml(whole) if sidecar else None, inside is not None or not metadata)
