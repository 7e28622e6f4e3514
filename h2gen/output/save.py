"""Saving pictures: safe names, complete files or none, and nothing is overwritten unless that is asked for."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.errors import MetadataError, OutputError, RunError
from h2gen.files import check_file, check_folder, partial_file, sha256
from h2gen.output.metadata import read_metadata, save_options
from h2gen.output.names import is_spellable
from h2gen.settings.table import FORMATS
from h2gen.settings.video_rows import VIDEO_FORMATS
from h2gen.wording import listed, shown

if TYPE_CHECKING:
    from PIL import Image

_ADDED = 32
"""Bytes that may be added to the name of a file: a seed, a number, and ``h2gen-`` where it is put if writing fails."""
_LONGEST_SLUG = 48
"""Characters."""
_LARGEST_SLUG = 100
"""Bytes; a number, a seed, a suffix and more words of a template are added."""
_OF_SUFFIX = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
_OF_VIDEOS = {f".{name}": name for name in VIDEO_FORMATS}
_NOT_WRITTEN = frozenset(
    f".{name}"
    for names in (
        "apng avi avif bmp eps exr gif heic heif ico jfif jp2 jpe jpeg jpg",
        "jxl m4v mkv mov mp4 mpeg mpg pdf png ppm psd svg tga tif tiff webm wmv",
    )
    for name in names.split()
)
"""Suffixes by which a path is meant to be a picture or a video, in a format that is not written."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True},
}


@dataclass(frozen=True)
class Target:
    """Where pictures go: a folder, with names made from prompt and seed, or one named file (``stem``).

    ``suffix`` is that of the named file, as it was given, such as ``JPEG``; otherwise it is empty.
    """

    folder: Path
    stem: str | None
    format: str
    suffix: str = ""

    @property
    def ending(self) -> str:
        """The suffix of the files, without its dot."""
        return self.suffix or self.format

    def name(self, prompt: str, seed: int) -> str:
        """The file's name without its suffix."""
        return self.stem if self.stem is not None else f"{slug(prompt)}-{seed}"

    def path(self, prompt: str, seed: int) -> Path:
        """The file, unless that name is taken."""
        return self.folder / f"{self.name(prompt, seed)}.{self.ending}"

    def has_sidecar(self, prompt: str, seed: int) -> bool:
        """Whether there is a sidecar of this name: one that replaces the picture has to replace it too."""
        return _is_sidecar(self.path(prompt, seed).with_suffix(".toml"))


def target_of(out: str | None, format: str | None, *, video: bool = False) -> Target:
    """Read ``--out`` and ``--format``. A path that ends in .png, .jpg, .jpeg or .webp is a file, any other a folder.

    Args:
        out, format: as they were given.
        video: whether a video goes there: .mp4, .gif and .webp are files.

    Raises:
        OutputError: the format is unknown or contradicts the suffix, or the folder cannot be written to; or nothing
            here can write such a video.
    """
    formats, of_suffix = (VIDEO_FORMATS, _OF_VIDEOS) if video else (FORMATS, _OF_SUFFIX)
    if format is not None and format not in formats:
        known = format in (*FORMATS, *VIDEO_FORMATS)
        what = f", and this is a {'video' if video else 'picture'}" if known else ""
        raise OutputError(f"format is {format!r}{what}; choose {listed(formats, 'or')}.")
    if out == "":
        raise OutputError("out is empty; give a folder or a file.")
    try:
        path = Path(out or ".").expanduser()
    except (RuntimeError, ValueError) as error:
        raise OutputError(f"out is {shown(out)}, and there is no such home folder; give another.") from error
    suffix = path.suffix.lower()
    if suffix in of_suffix and not os.path.isdir(path):
        if format not in (None, of_suffix[suffix]):
            raise OutputError(f"The file {str(path)!r} and the format {format!r} contradict each other; give one.")
        check_file(path, _ADDED)
        target = Target(path.parent, path.stem, of_suffix[suffix], path.suffix[1:])
    elif suffix in _NOT_WRITTEN and not os.path.isdir(path):
        raise OutputError(_not_written(suffix, path, video))
    else:
        check_folder(path)
        target = Target(path, None, format or formats[0])
    if video:
        from h2gen.output.video_file import check_video_format

        check_video_format(target.format)
    return target


def _not_written(suffix: str, path: Path, video: bool) -> str:
    if video:
        return f"Cannot write videos as {suffix} files ({str(path)!r}); use .mp4, .gif or .webp."
    what = "pictures as " if suffix in _OF_VIDEOS else ""
    return f"Cannot write {what}{suffix} files ({str(path)!r}); use .png, .jpg or .webp."


def slug(prompt: str) -> str:
    """The first words of the prompt as a file name: letters, digits and dashes.

    Latin letters lose their accents. Those of other scripts stay, unless the file system cannot spell them.
    """
    kept: list[str] = []
    for char in unicodedata.normalize("NFC", prompt):
        in_ascii = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
        kind = unicodedata.category(char)[0]
        if in_ascii or kind in "LN" or (kind == "M" and kept and not kept[-1].isascii()):
            kept.append(in_ascii or char)
    whole = unicodedata.normalize("NFC", "".join(kept).lower())
    if not is_spellable(whole):
        whole = whole.encode("ascii", "ignore").decode()
    words = re.sub(r"[\0-/:-`{-\x7f]+", "-", whole).strip("-")[:_LONGEST_SLUG]
    return words.encode()[:_LARGEST_SLUG].decode(errors="ignore").rstrip("-") or "picture"


def encode(image: Image.Image, format: str, metadata: Mapping[str, Any] | None = None) -> bytes:
    """A picture as the bytes of its file; ``metadata`` from ``fitting`` is written into it."""
    options = _OPTIONS[format] | ({} if metadata is None else save_options(metadata, format))
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def keep(
    data: bytes,
    folder: Path,
    stem: str,
    suffix: str,
    *,
    sidecar: str | None = None,
    before: Callable[[Path, str, str | None], None] | None = None,
    owner: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a picture under a name that is not taken yet, completely or not at all.

    Args:
        data: the file's bytes.
        folder: is created if it does not exist.
        stem: the name without suffix and number.
        suffix: without its dot.
        sidecar: text of a file ``NAME.toml`` next to it.
        before: is called with the final path and the SHA-256 of the data and of the sidecar before they get their
            names.
        owner: a tag in the names of unfinished files, by which ``sweep`` finds them.
        overwrite: take the name even if it is taken; the file that has it is replaced in one step.

    Returns:
        The file's path: ``STEM.png``, or ``STEM-2.png`` and so on if that exists.

    Raises:
        RunError: it could not be written there; the picture is then in the temporary folder, or in the user's home if
            that is full too, and the message says where.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(data, folder, stem, suffix, sidecar, before, owner, overwrite)
    except OSError as error:
        what = "video" if suffix.lower() in ("mp4", "gif") else "picture"
        failure = f"The {what} could not be written to {str(folder)!r}: {error.strerror or error}."
        saved = keep_safe(data, stem, suffix)
        raise RunError(failure if saved is None else f"{failure} It is safe in {str(saved)!r}.") from error


def keep_safe(data: bytes, stem: str, suffix: str) -> Path | None:
    """Write a file to the temporary folder, or to the user's home if that is full; None if neither takes it."""
    for place in (tempfile.gettempdir, Path.home):
        with contextlib.suppress(OSError, RuntimeError):
            return _write(data, Path(place()), f"h2gen-{stem}", suffix, None, None, "", False)
    return None


def _write(
    data: bytes,
    folder: Path,
    stem: str,
    suffix: str,
    sidecar: str | None,
    before: Callable[[Path, str, str | None], None] | None,
    owner: str,
    overwrite: bool,
) -> Path:
    with contextlib.ExitStack() as partials:
        partial = partials.enter_context(partial_file(data, folder, owner))
        beside = None if sidecar is None else partials.enter_context(partial_file(sidecar.encode(), folder, owner))
        for number in count(1):
            final = folder / f"{stem}{f'-{number}' if number > 1 else ''}.{suffix}"
            if overwrite:
                if beside is not None:
                    os.replace(beside, final.with_suffix(".toml"))
                os.replace(partial, final)
                if beside is None and _is_sidecar(final.with_suffix(".toml")):  # of the picture that was replaced
                    with contextlib.suppress(OSError):
                        final.with_suffix(".toml").unlink()
                _sync(folder)
                return final
            if final.exists() or (beside is not None and final.with_suffix(".toml").exists()):
                continue
            if before is not None:
                before(final, sha256(data), None if sidecar is None else sha256(sidecar.encode()))
            try:
                if beside is not None:  # first, so that a picture that exists has its sidecar
                    _claim(beside, final.with_suffix(".toml"))
            except FileExistsError:
                continue
            try:
                _claim(partial, final)
            except FileExistsError:
                if beside is not None:
                    os.unlink(final.with_suffix(".toml"))
                continue
            _sync(folder)
            return final
        raise AssertionError("unreachable")


def _is_sidecar(path: Path) -> bool:
    """Whether a file is a sidecar, and not any other .toml file of the user's."""
    try:
        read_metadata(path)
    except MetadataError:
        return False
    return True


def _sync(folder: Path) -> None:
    """Make the folder's names survive a power failure, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path, owner: str) -> None:
    """Remove the unfinished files of a killed run with this tag; no other run with the same tag may be active."""
    for path in folder.glob(f".h2gen-{owner}*.partial"):
        with contextlib.suppress(OSError):
            path.unlink()


def _claim(partial: str, final: Path) -> None:
    """Give the finished file its name, unless it is taken."""
    try:
        os.link(partial, final)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if final.exists():
            raise FileExistsError(final) from None
        os.rename(partial, final)
