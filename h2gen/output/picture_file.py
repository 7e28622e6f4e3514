"""Turns a finished picture into the bytes of its file, with its metadata, and the text of its sidecar."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from h2gen.errors import RunError
from h2gen.output.metadata import Origin, describe, fitting, to_bytes, to_toml
from h2gen.output.save import encode, keep_safe, slug

if TYPE_CHECKING:
    import numpy as np

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
        format: one of ``FORMATS``, or of ``VIDEO_FORMATS`` for a video.
        notes: further facts to record.
        metadata: write metadata into the picture.
        sidecar: also write it as text for a ``.toml`` next to the picture.

    Raises:
        RunError: a video cannot be encoded; its frames are then in the temporary folder.
    """
    whole = described(result, origin, notes)
    inside = fitting(whole, format) if metadata else None
    if result.frames is None:
        data = encode(result.image, format, inside)
    else:
        settings = result.settings
        text = None if inside is None else to_bytes(inside, format)
        stem = f"{slug(settings.title)}-{settings.seed}"
        data = encode_or_keep(result.frames, settings.fps or 1, format, text, stem)
    return PictureFile(data, to_toml(whole) if sidecar else None, inside is not None or not metadata, whole)


def described(result: Result, origin: Origin, notes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How a picture was made; see ``describe``."""
    return describe(
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


def encode_or_keep(
    frames: np.ndarray[Any, np.dtype[np.uint8]], fps: float, format: str, metadata: bytes | None, stem: str
) -> bytes:
    """As ``encode_video``; if that fails the frames are kept in the temporary folder.

    Args:
        stem: of the name there.

    Raises:
        RunError: it failed; the message says where the frames are.
    """
    from h2gen.output.video_file import encode_video

    try:
        return encode_video(frames, fps, format, metadata)
    except Exception as error:
        failure = f"The video could not be encoded as .{format}: {str(error) or type(error).__name__}."
        for suffix, encoded in _kept_as(frames, fps, format):
            saved = keep_safe(encoded, stem, suffix)
            if saved is not None:
                failure += f" Its frames are safe in {str(saved)!r}."
                break
        raise RunError(failure) from error


def _kept_as(frames: np.ndarray[Any, np.dtype[np.uint8]], fps: float, format: str) -> Iterator[tuple[str, bytes]]:
    """The frames without any loss, first as what can be watched."""
    if format != "webp":
        with suppress(Exception):
            from h2gen.output.video_file import encode_video

            yield "webp", encode_video(frames, fps, "webp")
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, frames)
    yield "npy", buffer.getvalue()
