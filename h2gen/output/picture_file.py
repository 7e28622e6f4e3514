"""Turns a finished picture into the bytes of its file, with its metadata, and the text of its sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from h2gen.output.metadata import Origin, describe, fitting, to_toml
from h2gen.output.save import encode

if TYPE_CHECKING:
    from h2gen.generation.result import Result


@dataclass(frozen=True)
class PictureFile:
    """A picture's file, in memory.

    Args:
        data: the file's bytes.
        sidecar: text of the ``.toml`` next to it, or None.
        described: False if metadata was wanted but is too long for the format.
        metadata: how the picture was made, whether or not it was written.
    """

    data: bytes = field(repr=False)
    sidecar: str | None = field(repr=False)
    described: bool
    metadata: dict[str, Any] = field(repr=False)


def picture_file(
    result: Result,
    origin: Origin,
    format: str,
    *,
    notes: Mapping[str, Any] | None = None,
    metadata: bool = True,
    sidecar: bool = False,
) -> PictureFile:
    """Encode a picture together with how it was made.

    Args:
        result: the picture.
        origin: what it was made with; its content hash may be None only if nothing is written about that.
        format: one of ``FORMATS``.
        notes: further facts to record.
        metadata: write metadata into the picture.
        sidecar: also write it as text for a ``.toml`` next to the picture.
    """
    whole = describe(
        result.settings,
        origin,
        seconds=result.seconds,
        summary=result.summary,
        made=result.made,
        nan_with_cache=result.nan_with_cache,
        tiled=result.tiled,
        together=result.together,
        peak_memory=result.peak_memory,
        left_out={each.setting: each.text for each in result.unread},
        preset=result.preset,
        kept=result.trace.kept,
        notes=notes,
    )
    inside = fitting(whole, format) if metadata else None
    data = encode(result.image, format, inside)
    return PictureFile(data, to_toml(whole) if sidecar else None, inside is not None or not metadata, whole)
