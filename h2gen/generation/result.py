"""A finished picture and how it was made: to look at, to save with its metadata, to show in a notebook."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.cache import Summary, Trace
from h2gen.generation.unread import Unread
from h2gen.models.peak_memory import PeakMemory
from h2gen.output.metadata import Origin
from h2gen.output.picture_file import PictureFile, described, picture_file
from h2gen.output.save import Target, keep, target_of
from h2gen.settings.values import Settings

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def pixels_of(output: Any) -> np.ndarray[Any, Any]:
    """What a pipeline returned: ``(B, H, W, 3)``, of videos ``(B, F, H, W, 3)``."""
    import numpy as np

    return np.asarray(output.frames if hasattr(output, "frames") else output.images)


def painted(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The image and the frames of a ``Result``, from floats in 0 to 1, which are rounded as diffusers does."""
    from PIL import Image

    rounded = (pixels * 255).round().astype("uint8")
    frames = rounded if rounded.ndim == 4 else None
    return {"image": Image.fromarray(rounded if frames is None else frames[0]), "frames": frames}


def _no_hash() -> str | None:
    return None


@dataclass(frozen=True)
class Result:
    """A picture or a video and how it was made. In a notebook it shows itself.

    Args:
        image: the picture; of a video, its first frame. Its own ``save`` writes only the pixels; ``Result.save`` also
            writes how it was made.
        settings: what it was made with.
        seconds: of the whole call, from text encoding to decoded picture; the picture's share in a batch.
        trace: what the cache did at each step; empty if the cache was off and there was no ``on_step``: the
            pipeline then ran without any hook.
        origin: the model, device and dtype; without the checkpoint's content hash.
        content_hash: computes that hash, which reads the whole checkpoint the first time.
        preset: the preset that its cache's settings come from, if any.
        nan_with_cache: the picture was NaN with the cache and was made again without it; settings and seconds are
            those of the second run, and the trace is empty.
        tiled: it was decoded in tiles on request, whatever its size.
        together: pictures in its batch.
        unread: what the model did not read of the prompt and the negative prompt.
        peak_memory: the most that was in use meanwhile, if that is known.
        made: when.
        path: its file, if ``generate`` saved it.
        frames: of a video, ``(F, H, W, 3)``, from 0 to 255; None for a picture.
    """

    image: Image.Image = field(repr=False)
    settings: Settings
    seconds: float
    trace: Trace = field(repr=False)
    origin: Origin
    content_hash: Callable[[], str | None] = field(default=_no_hash, repr=False, compare=False)
    preset: str | None = None
    nan_with_cache: bool = False
    tiled: bool = False
    together: int = 1
    unread: tuple[Unread, ...] = ()
    peak_memory: PeakMemory | None = field(default=None, compare=False)
    made: datetime = field(default_factory=lambda: datetime.now(timezone.utc), repr=False)
    path: Path | None = None
    frames: np.ndarray[Any, np.dtype[np.uint8]] | None = field(default=None, repr=False, compare=False)

    @property
    def summary(self) -> Summary | None:
        """What the cache did; None if it was off."""
        return self.trace.summary if self.settings.cache.enabled else None

    @property
    def metadata(self) -> dict[str, Any]:
        """How it was made, as it is written into files and printed by ``--json``.

        Raises:
            ModelError: the checkpoint's files are missing or damaged by now.
        """
        return described(self, replace(self.origin, content_hash=self.content_hash()))

    def save(
        self,
        path: str | Path = ".",
        *,
        format: str | None = None,
        metadata: bool = True,
        sidecar: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Save the picture or the video, with how it was made, as the command line does.

        Args:
            path: a folder, in which the name is made from prompt and seed, or a .png, .jpg or .webp file; of a video,
                an .mp4, .gif or .webp file. If it exists, ``cat.png`` becomes ``cat-2.png``.
            format: ``png``, ``jpg`` or ``webp``, for a folder; of a video, ``mp4``, ``gif`` or ``webp``.
            metadata: record in the picture how it was made.
            sidecar: also write that to a .toml next to it.
            overwrite: replace an existing file instead.

        Returns:
            The file's path.

        Raises:
            OutputError: nothing can be written there.
            RunError: encoding or writing failed; the picture is then in the temporary folder.

        >>> session.generate("a cat", seed=7).save("cat.png")  # doctest: +SKIP
        """
        target = target_of(str(path), format, video=self.frames is not None)
        saved = self.saved(target, metadata=metadata, sidecar=sidecar, overwrite=overwrite).path
        assert saved is not None
        return saved

    def saved(self, target: Target, *, metadata: bool = True, sidecar: bool = False, overwrite: bool = False) -> Result:
        """As ``save``; returns the result with its ``path``."""
        named = self.settings.title, self.settings.seed
        old = overwrite and metadata and target.has_sidecar(*named)
        file = self.file(target.format, metadata=metadata, sidecar=sidecar or old)
        if not file.described:
            warnings.warn(f"The prompt is too long for the metadata of a .{target.ending}; use png.", stacklevel=3)
        stem = target.name(*named)
        path = keep(file.data, target.folder, stem, target.ending, sidecar=file.sidecar, overwrite=overwrite)
        return replace(self, path=path)

    def file(
        self, format: str, notes: dict[str, Any] | None = None, *, metadata: bool = True, sidecar: bool = False
    ) -> PictureFile:
        """The picture's file in memory; see ``picture_file``."""
        source = replace(self.origin, content_hash=self.content_hash() if metadata or sidecar else None)
        return picture_file(self, source, format, notes=notes, metadata=metadata, sidecar=sidecar)

    def _repr_html_(self) -> str | None:
        """A video, for a notebook."""
        if self.frames is None:
            return None
        from h2gen.output.video_file import as_html

        return as_html(self.frames, self.settings.fps or 1)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        return buffer.getvalue()
