"""A video's frames as the bytes of an .mp4, .gif or .webp file."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from h2gen.errors import OutputError
from h2gen.output.embedded import MP4_TAG, exif_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Frames = np.ndarray[Any, np.dtype[np.uint8]]

CODEC = "libx264"
_OPTIONS = {"crf": "16", "preset": "medium", "mbtree": "0"}
"""A constant quality at which a difference is hard to see, at the encoder's own speed. With ``mbtree``
x264 does not always give the same bytes for the same frames."""
_THREADS = 4
"""The encoder's output depends on their number, so it is not the machine's."""
_FASTEST = 50
"""Frames per second of a GIF: it counts in 1/100 s, and programs show a frame of 1/100 s for 1/10."""
_SAMPLES = 2**18
"""Pixels that the colours of a GIF are chosen from."""


def check_video_format(format: str) -> None:
    """Check that a video of this format can be written here; nothing is loaded.

    Raises:
        OutputError: a package is missing.
    """
    if format != "mp4":
        return
    from importlib.util import find_spec

    if find_spec("av") is None:
        raise OutputError(
            "An .mp4 file needs the package av: pip install 'h2gen[video]'. Without it, give --format gif or webp."
        )


def encode_video(frames: Frames, fps: float, format: str, metadata: bytes | None = None) -> bytes:
    """A video as the bytes of its file; the same frames give the same bytes.

    A WebP file keeps every pixel. An MP4 file (H.264, 4:2:0) is nearly the same picture; a GIF has 256 colours. An MP4
    file has even sides: an odd one gets its last row or column twice.

    Args:
        frames: ``(F, H, W, 3)``.
        fps: frames per second.
        format: one of ``VIDEO_FORMATS``.
        metadata: is written into it.

    Raises:
        Exception: whatever the encoder raises.
    """
    return {"mp4": _mp4, "gif": _gif, "webp": _webp}[format](frames, fps, metadata)


def mp4_or_webp(frames: Frames, fps: float) -> tuple[bytes, str]:
    """A video as the bytes of an MP4 file, or of a WebP file where that cannot be written; and the format."""
    try:
        return encode_video(frames, fps, "mp4"), "mp4"
    except Exception:  # noqa: BLE001 - there may be no encoder here
        return encode_video(frames, fps, "webp"), "webp"


def as_html(frames: Frames, fps: float) -> str:
    """A video that plays itself, as HTML with its bytes in it: MP4, or WebP where that cannot be written."""
    from base64 import b64encode

    data, format = mp4_or_webp(frames, fps)
    text = b64encode(data).decode()
    if format == "webp":
        return f'<img src="data:image/webp;base64,{text}">'
    return f'<video controls loop autoplay muted src="data:video/mp4;base64,{text}"></video>'


def _mp4(frames: Frames, fps: float, metadata: bytes | None) -> bytes:
    import av
    import numpy as np
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    odd = [(0, side % 2) for side in frames.shape[1:3]]
    rate, buffer = Fraction(fps).limit_denominator(1001), io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(CODEC, rate=rate, options=_OPTIONS)
        context = stream.codec_context
        stream.height, stream.width = (side + side % 2 for side in frames.shape[1:3])
        stream.pix_fmt, context.thread_count = "yuv420p", _THREADS
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        if metadata is not None:
            container.metadata[MP4_TAG] = metadata.decode()
        for number, pixels in enumerate(frames):
            even = np.pad(pixels, [*odd, (0, 0)], mode="edge")
            frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _gif(frames: Frames, fps: float, metadata: bytes | None) -> bytes:
    first, *others = _in_256_colours(frames)
    more: dict[str, Any] = {} if metadata is None else {"comment": metadata}
    durations = _durations(len(frames), min(fps, _FASTEST), 10)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=False, **more)
    return buffer.getvalue()


def _webp(frames: Frames, fps: float, metadata: bytes | None) -> bytes:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    more: dict[str, Any] = {} if metadata is None else {"exif": exif_of(metadata)}
    more |= {"duration": _durations(len(frames), fps, 1), "loop": 0, "lossless": True, "quality": 50}
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=others, **more)
    return buffer.getvalue()


def _durations(count: int, fps: float, unit: int) -> list[int]:
    """Milliseconds of each frame, in whole units, so that no frame is off by more than one unit."""
    ends = [round(1000 * number / fps / unit) for number in range(count + 1)]
    return [unit * (end - start) for start, end in pairwise(ends)]


def _in_256_colours(frames: Frames) -> list[Image.Image]:
    """The frames with one palette, so that what does not move does not flicker."""
    from PIL import Image

    count, height, width, _ = frames.shape
    step = max(1, round((count * height * width / _SAMPLES) ** (1 / 3)))
    some = frames[::step, ::step, ::step].reshape(1, -1, 3)
    palette = Image.fromarray(some).quantize(256, Image.Quantize.MEDIANCUT)
    return [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
