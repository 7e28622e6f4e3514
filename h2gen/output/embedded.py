"""The text of h2gen's metadata in the file of a picture or video, also where another program has moved it."""

from __future__ import annotations

import html
import json
import re
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from h2gen._version import __version__
from h2gen.errors import MetadataError

LARGEST = 2 * 2**20
"""Bytes of metadata that are written to a file or read from it."""
KEY = "h2gen"
"""The keyword of the text in a PNG."""
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
MP4_TAG = "comment"
"""Of an MP4 video. Programs that copy or cut one without encoding it again keep it."""
ASCII = b"ASCII\0\0\0"
"""The character set that EXIF wants in front of a comment."""

_PREFIXES = (ASCII, b"UNICODE\0", b"JIS\0\0\0\0\0", bytes(8))
_SOFTWARE = 0x0131
_XMP = ("xmp", "XML:com.adobe.xmp")
_TRIES = 20
"""Objects in one text that are looked at."""


def text_in(path: Path) -> str | None:
    """The metadata of a PNG, JPEG, WebP, GIF or MP4 file, as text that should be JSON; None if there is none.

    Programs that save a picture again keep texts behind the pixels of a PNG, or in another of EXIF's fields, XMP or a
    comment. The pixels are decoded only for a PNG with no text in front of them.

    Raises:
        MetadataError: the package that reads an MP4 video is missing.
        Exception: the file is damaged; it may be anything that the readers raise.
    """
    if is_mp4(path):
        return next((found for text in _tags_of(path) for found in _objects(text)), None)
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its size in pixels
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "GIF")) as image:
            found = next(_texts(image), None)
            if found is None and image.format == "PNG":
                image.load()  # reads what follows the pixels
                found = next(_texts(image), None)
            return found


def is_mp4(path: Path) -> bool:
    """Whether a file is an MP4 video, by its first bytes."""
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def _tags_of(path: Path) -> Iterator[str]:
    """The texts in an .mp4 file that may be its metadata; no frame is decoded.

    Raises:
        MetadataError: the package that reads it is missing.
        Exception: the file is damaged.
    """
    try:
        import av
    except ImportError as error:
        raise MetadataError("Reading an .mp4 file needs the package av: pip install 'h2gen[video]'.") from error

    # No other of FFmpeg's readers ever sees the file: some of them open files and addresses that it names.
    with av.open(str(path), format="mov", metadata_errors="replace") as container:
        found = dict(container.metadata)
    yield from (found.pop(MP4_TAG, ""), *found.values())


def exif_of(text: bytes) -> bytes:
    """The EXIF of a JPEG or WebP file with this metadata, in ASCII."""
    from PIL import Image

    exif = Image.Exif()
    exif[_SOFTWARE] = f"h2gen {__version__}"
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + text
    return exif.tobytes()


def _texts(image: Any) -> Iterator[str]:
    """Texts that may be our metadata; our own places come first."""
    own = image.info.get(KEY)
    if isinstance(own, str):
        yield _decoded(own)
    exif = image.getexif()
    inner = exif.get_ifd(EXIF_IFD)
    others = (value for key, value in image.info.items() if key not in (KEY, "exif", "icc_profile", *_XMP))
    for value in (inner.get(USER_COMMENT), *inner.values(), *exif.values(), *others):
        if isinstance(value, (str, bytes)):
            yield from _objects(_decoded(value))
    for key in _XMP:
        if isinstance(image.info.get(key), (str, bytes)):
            yield from _objects(html.unescape(_decoded(image.info[key])))


def _decoded(value: str | bytes) -> str:
    """A text from bytes in any of the encodings that programs write."""
    if isinstance(value, str):
        if hasattr(value, "lang"):  # a PNG's iTXt, which is UTF-8
            return value
        try:
            return value.encode("latin-1").decode()  # UTF-8, where the format wants Latin-1
        except UnicodeError:
            return value
    body = value[8:] if value[:8] in _PREFIXES else value
    body = body.removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
    wide = "utf-16-le" if body[1:2] == b"\0" else "utf-16-be" if body[:1] == b"\0" else "utf-8"  # it begins in ASCII
    return body.decode(wide, "replace")


def _objects(text: str) -> Iterator[str]:
    """The JSON objects in a text that look like ours; one that is damaged too, if it is all of the text."""
    if len(text) > LARGEST or '"content_hash"' not in text:
        return
    decoder = json.JSONDecoder()
    for start in islice(re.finditer(r'\{\s*"', text), _TRIES):
        try:
            _, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            if start.start() == 0:
                yield text
            continue
        if '"content_hash"' in text[start.start() : end]:
            yield text[start.start() : end]
