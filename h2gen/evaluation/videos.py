"""Videos in the evaluation: their exact frames, and the files that keep them."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from h2gen.errors import OutputError
from h2gen.output.save import encode
from h2gen.output.video_file import encode_video

if TYPE_CHECKING:
    from h2gen.generation.result import Result
    from h2gen.output.video_file import Frames


@dataclass(frozen=True, eq=False)
class Video:
    """Frames, ``(F, H, W, 3)`` from 0 to 255, and how many are shown per second."""

    frames: Frames
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.frames.shape[2], self.frames.shape[1]

    def picture(self, number: int) -> Image.Image:
        """One frame."""
        return Image.fromarray(self.frames[number])

    @property
    def pictures(self) -> Iterator[Image.Image]:
        """All frames, made one at a time: together they would take more memory than the video."""
        return map(self.picture, range(len(self.frames)))

    @property
    def middle(self) -> Image.Image:
        """The frame in the middle."""
        return self.picture(len(self.frames) // 2)

    def webp(self) -> bytes:
        """An animated WebP file with exactly these pixels."""
        return encode_video(self.frames, self.fps, "webp")

    def npz(self) -> bytes:
        """A NumPy file with exactly these frames; a WebP file would merge identical ones."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, frames=self.frames, fps=np.float64(self.fps))
        return buffer.getvalue()


Shown = Image.Image | Video
"""What a method makes of a case."""


def shown(result: Result) -> Shown:
    """A result's picture, or its video."""
    return result.image if result.frames is None else Video(result.frames, result.settings.fps or 1)


def identical(one: Shown, other: Shown) -> bool:
    """Whether every pixel is the same."""
    return bool(np.array_equal(pixels(one), pixels(other)))


def pixels(image: Shown) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of a picture, ``(H, W, 3)``, or of a video, ``(F, H, W, 3)``."""
    return image.frames if isinstance(image, Video) else np.asarray(image)


def keep_exactly(image: Shown, file: Path) -> None:
    """Write a picture or a video so that ``kept_picture`` or ``kept_video`` reads the same pixels.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(exact_bytes(image))
    except OSError as error:
        raise OutputError(f"Cannot write {str(file)!r}: {error.strerror or error}.") from error


def exact_bytes(image: Shown) -> bytes:
    """A file from which ``kept_picture`` or ``kept_video`` reads the same pixels."""
    return image.npz() if isinstance(image, Video) else encode(image, "png")


def kept_picture(file: Path | IO[bytes]) -> Image.Image | None:
    """The picture of a file; None if there is none."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except OSError:
        return None


def kept_video(file: Path | IO[bytes]) -> Video | None:
    """The video of a file that ``npz`` made; None if there is none, or if it is damaged."""
    try:
        with np.load(file) as kept:
            return Video(kept["frames"], float(kept["fps"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def webp_video(path: Path, fps: float) -> Video:
    """The video of a file that ``webp`` made.

    The file leaves out frames that are identical to the one before, and shows that one longer; here they are back.
    """
    frames = []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frame = np.asarray(image.convert("RGB"))  # its duration is known from here on
            frames += [frame] * max(1, round(image.info.get("duration", 0) * fps / 1000))
    return Video(np.stack(frames), fps)
