"""Metadata is found wherever another program has put it when it saved the picture again."""

from __future__ import annotations

import html
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from h2gen.errors import MetadataError
from h2gen.output.embedded import LARGEST
from h2gen.output.metadata import read_metadata
from h2gen.output.save import encode
from tests.output.test_metadata import IMAGE, described

WHOLE = described('a "café" & 猫 {"x": <b>')
TEXT = json.dumps(WHOLE)
UTF8 = json.dumps(WHOLE, ensure_ascii=False)
_IFD, _COMMENT, _DESCRIPTION, _XP_COMMENT = 0x8769, 0x9286, 0x010E, 0x9C9C


def saved(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, format, **options)
    return buffer.getvalue()


def chunks(data: bytes) -> list[bytes]:
    found, data = [], data[8:]
    while data:
        length = struct.unpack(">I", data[:4])[0] + 12
        found.append(data[:length])
        data = data[length:]
    return found


def behind_the_pixels() -> bytes:
    data = encode(IMAGE, "png", WHOLE)
    return data[:8] + b"".join(sorted(chunks(data), key=lambda chunk: (chunk[4:8] == b"IEND", chunk[4:8] == b"iTXt")))


def png_text(kind: bytes, text: bytes) -> bytes:
    body = kind + b"h2gen\0" + (b"\0" + zlib.compress(text) if kind == b"zTXt" else text)
    data = saved("PNG")
    return data[:-12] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[-12:]


def exif(tag: int, value: str | bytes, endian: str = "<", ifd: int | None = None) -> bytes:
    made = Image.Exif()
    made.endian = endian
    (made if ifd is None else made.get_ifd(ifd))[tag] = value
    return made.tobytes()


def again(format: str) -> bytes:
    """Saved again by Pillow, with EXIF as it was."""
    with Image.open(io.BytesIO(encode(IMAGE, format, WHOLE))) as image:
        buffer = io.BytesIO()
        image.save(buffer, image.format, exif=image.getexif())
        return buffer.getvalue()


def xmp(text: str) -> bytes:
    return f'<x:xmpmeta><rdf:Description a="{{&quot;b&quot;}}" c="{html.escape(text)}"/></x:xmpmeta>'.encode()


def png_xmp() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(UTF8).decode())
    return saved("PNG", pnginfo=info)


MOVED: dict[str, Callable[[], bytes]] = {
    "behind the pixels of a PNG": behind_the_pixels,
    "tEXt in UTF-8": lambda: png_text(b"tEXt", UTF8.encode()),
    "zTXt in ASCII": lambda: png_text(b"zTXt", TEXT.encode()),
    "EXIF in a PNG": lambda: saved("PNG", exif=exif(_COMMENT, b"ASCII\0\0\0" + TEXT.encode(), ifd=_IFD)),
    "XMP in a PNG": png_xmp,
    "saved again as JPEG": lambda: again("jpg"),
    "saved again as WebP": lambda: again("webp"),
    "EXIF in the other byte order": lambda: saved(
        "JPEG", exif=exif(_COMMENT, b"ASCII\0\0\0" + TEXT.encode(), ">", _IFD)
    ),
    "a comment in UTF-16": lambda: saved(
        "JPEG", exif=exif(_COMMENT, b"UNICODE\0" + UTF8.encode("utf-16-le"), ifd=_IFD)
    ),
    "a comment in UTF-16, the other byte order": lambda: saved(
        "WEBP", exif=exif(_COMMENT, b"UNICODE\0" + UTF8.encode("utf-16-be"), ">", _IFD)
    ),
    "a comment without a character set": lambda: saved("JPEG", exif=exif(_COMMENT, UTF8.encode(), ifd=_IFD)),
    "a comment as text": lambda: saved("JPEG", exif=exif(_COMMENT, TEXT, ifd=_IFD)),
    "the description": lambda: saved("JPEG", exif=exif(_DESCRIPTION, TEXT)),
    "the comment of Windows": lambda: saved("JPEG", exif=exif(_XP_COMMENT, UTF8.encode("utf-16-le"))),
    "a comment of JPEG": lambda: saved("JPEG", comment=UTF8.encode()),
    "XMP in a JPEG": lambda: saved("JPEG", xmp=xmp(UTF8)),
    "XMP in a WebP": lambda: saved("WEBP", xmp=xmp(UTF8)),
}


@pytest.mark.parametrize("where", MOVED)
def test_it_is_found_where_another_program_has_put_it(tmp_path: Path, where: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(MOVED[where]())
    assert read_metadata(path).everything == WHOLE


def test_where_it_is_gone_the_message_says_how_and_names_the_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(encode(IMAGE, "png"))
    with pytest.raises(MetadataError, match=r"no h2gen metadata: .* screenshots, messengers and many sites do\.$"):
        read_metadata(path)
    (tmp_path / "cat.toml").touch()
    with pytest.raises(MetadataError, match=r"Give its sidecar 'cat\.toml' instead"):
        read_metadata(path)


def test_a_text_that_merely_looks_like_it_is_looked_at_a_few_times_only(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(saved("JPEG", comment=b' {"content_hash"' * 4000))
    with pytest.raises(MetadataError, match="no h2gen metadata"):
        read_metadata(path)


def test_a_text_larger_than_any_metadata_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(saved("WEBP", xmp=b" " * LARGEST + UTF8.encode()))
    with pytest.raises(MetadataError, match="has no h2gen metadata"):
        read_metadata(tmp_path / "a.webp")
