"""How a picture was made, as the picture itself says it; what a stranger's says is checked before it is used."""

from __future__ import annotations

import io
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen._version import __version__
from h2gen.cache.config import POLICIES, CacheConfig
from h2gen.errors import MetadataError, SettingError
from h2gen.sanitize import plain
from h2gen.settings.values import Settings
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.cache.trace import Summary
    from h2gen.generation.session import Session
    from h2gen.models.catalogue import Checkpoint

KEY = "h2gen"
"""The keyword of the text in a PNG."""
VERSION = 1
LARGEST = 2 * 2**20
"""Bytes of metadata that are written to a file or read from it."""
_MOST = {"png": 2**20, "jpg": 60_000, "webp": LARGEST}
"""Bytes of metadata in a picture: Pillow reads texts of 1 MiB from a PNG, and a JPEG's EXIF takes 64 KiB in all."""

_EXIF_IFD, _USER_COMMENT, _SOFTWARE = 0x8769, 0x9286, 0x0131
_ASCII = b"ASCII\0\0\0"


@dataclass(frozen=True)
class Origin:
    """With what a picture was made. ``content_hash`` is the checkpoint's, ``name`` what the user calls it."""

    name: str
    content_hash: str
    device: str
    dtype: str
    offload: str
    base: str | None = None


def describe(
    settings: Settings,
    made: Origin,
    *,
    seconds: float,
    summary: Summary | None,
    uncached: bool = False,
    tiled: bool = False,
    together: int = 1,
    preset: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of a picture that has just been made."""
    return {
        "version": VERSION,
        "settings": settings.to_json(),
        "model": {"name": made.name, "content_hash": made.content_hash, **({"base": made.base} if made.base else {})},
        "device": made.device,
        "dtype": made.dtype,
        "offload": made.offload,
        "versions": versions(),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "uncached": uncached,
        **({"tiled": True} if tiled else {}),
        **({"together": together} if together > 1 else {}),
        **({"preset": preset} if preset else {}),
        **({"cache": summary.to_json()} if summary is not None else {}),
        **({"notes": dict(notes)} if notes else {}),
    }


def model_name(checkpoint: Checkpoint) -> str:
    """What a picture says of its model: an alias or a hub id as it is, of a path the last part alone."""
    return checkpoint.name if checkpoint.kind in ("bundled", "hub") else Path(checkpoint.location).resolve().name


def origin(session: Session, content_hash: str) -> Origin:
    """What a session's pictures are made with."""
    base = session.checkpoint.base
    return Origin(
        name=model_name(session.checkpoint),
        content_hash=content_hash,
        device=device_name(str(session.device)),
        dtype=str(session.dtype).removeprefix("torch."),
        offload=session.offload,
        base=None if base is None else model_name(base),
    )


def versions() -> dict[str, str]:
    """What computed it."""
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"h2gen": __version__, **packages, "python": platform.python_version()}


def device_name(device: str) -> str:
    """A device as metadata name it: its kind, and for a GPU its model too; which of several like it makes no odds."""
    kind = device.split(":")[0]
    if kind == "cuda" and "torch" in sys.modules:
        import torch

        return f"{kind} {torch.cuda.get_device_name(device)}"
    return kind


def to_bytes(metadata: Mapping[str, Any], format: str) -> bytes:
    """The metadata as one line of JSON, as a picture of this format holds them."""
    # A PNG's text is UTF-8, which takes a third of the room of escapes; EXIF's is ASCII.
    text = json.dumps(metadata, allow_nan=False, ensure_ascii=format != "png")
    return text.encode("utf-8", "replace")


def to_toml(metadata: Mapping[str, Any]) -> str:
    """The metadata as a file beside the picture; without the notes where it would be too large to be read again."""
    import tomli_w

    whole, file = plain(metadata), _Bounded()
    try:
        tomli_w.dump(whole, file)
    except ValueError:
        return tomli_w.dumps({key: value for key, value in whole.items() if key != "notes"})
    return file.getvalue().decode()


class _Bounded(io.BytesIO):
    """Takes no more than can be read: the TOML of a table names all tables around it, and so can be far longer."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > LARGEST:
            raise ValueError("too large")
        return super().write(data)


def fitting(metadata: Mapping[str, Any], format: str) -> Mapping[str, Any] | None:
    """The metadata as far as a picture of this format can hold them: without the notes, or None if even so not."""
    for candidate in (metadata, {key: value for key, value in metadata.items() if key != "notes"}):
        if len(to_bytes(candidate, format)) <= _MOST[format]:
            return candidate
    return None


def save_options(metadata: Mapping[str, Any], format: str) -> dict[str, Any]:
    """What Pillow's ``save`` takes to write the metadata into a picture: text in PNG, EXIF in JPEG and WebP."""
    from PIL import Image, PngImagePlugin

    text = to_bytes(metadata, format)
    if format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(KEY, text.decode(), zip=len(text) > 4096)
        return {"pnginfo": info}
    exif = Image.Exif()
    exif[_SOFTWARE] = f"h2gen {__version__}"
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + text
    return {"exif": exif.tobytes()}


@dataclass(frozen=True)
class Metadata:
    """What a picture says of itself, checked: each field is of its type and in its range, but may still be untrue.

    ``everything`` is the whole object, for showing.
    """

    settings: Settings
    model: str
    content_hash: str | None
    base: str | None
    dtype: str | None
    device: str | None
    preset: str | None
    tiled: bool
    together: bool
    versions: Mapping[str, str]
    everything: Mapping[str, Any]


def read_metadata(path: Path) -> Metadata:
    """What a picture, or the ``.toml`` beside it, says about how it was made. Its pixels are not decoded.

    Raises:
        MetadataError: it is no picture of ours, or what it says is damaged or impossible.
    """
    shown = repr(printable(str(path)))
    try:
        if not path.exists():
            raise MetadataError(f"There is no file {shown}; check the path.")
        if not path.is_file():
            raise MetadataError(f"{shown} is not a file; give a picture.")
        data = _from_toml(path, shown) if path.suffix.lower() == ".toml" else _from_picture(path, shown)
    except (OSError, ValueError) as error:
        raise MetadataError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        return _checked(data)
    except (SettingError, TypeError, ValueError, ArithmeticError) as error:
        reason = printable(str(error)[:300])  # a stranger's value may be very long
        raise MetadataError(f"The metadata of {shown} cannot be used: {reason}") from error


def _from_toml(path: Path, shown: str) -> dict[str, Any]:
    from h2gen.toml import read_toml

    if path.stat().st_size > LARGEST:
        raise MetadataError(f"{shown} is too large to be metadata; give the .toml beside a picture.")
    try:
        return read_toml(path, LARGEST)
    except ValueError as error:
        raise MetadataError(f"{shown} cannot be used: {error}.") from error


def _from_picture(path: Path, shown: str) -> dict[str, Any]:
    text = _text_of(path, shown)
    if text is None:
        raise MetadataError(f"{shown} does not say how it was made; it has no metadata of h2gen.")
    if len(text) > LARGEST:
        raise MetadataError(f"The metadata of {shown} is too large to be h2gen's.")
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"The metadata of {shown} is damaged: it is no JSON.") from error
    if not isinstance(data, dict):
        raise MetadataError(f"The metadata of {shown} is damaged: it is no object.")
    return data


def _text_of(path: Path, shown: str) -> str | None:
    """The text that ``save_options`` wrote."""
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size in pixels, which nobody decodes
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                if image.format == "PNG":
                    text = image.info.get(KEY)
                    return text if isinstance(text, str) else None
                comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception as error:
        # Whatever a stranger's file makes Pillow's readers do: it is not a picture that we can read.
        raise MetadataError(f"{shown} is not a PNG, JPEG or WebP picture, or it is damaged.") from error
    if isinstance(comment, str):
        comment = comment.encode("latin-1", "replace")
    if not isinstance(comment, bytes) or not comment.startswith(_ASCII):
        return None
    body = comment.removeprefix(_ASCII)
    return body.decode("ascii", "replace") if body[:1] == b"{" and b'"content_hash"' in body else None


def _checked(raw: Mapping[str, Any]) -> Metadata:
    data = plain(raw)
    found = data.get("version")
    if isinstance(found, int) and not isinstance(found, bool) and found > VERSION:
        raise SettingError(f"it is of version {found}, newer than this h2gen reads; update h2gen.")
    if found != VERSION:
        raise SettingError("it does not say that it is h2gen's.")
    model = data.get("model")
    if not isinstance(model, dict):
        raise SettingError("model is missing.")
    if not isinstance(raw.get("settings"), dict):
        raise SettingError("settings is missing.")
    name = _short(model, "name")
    if name is None:
        raise SettingError("model.name is missing.")
    known = data.get("versions", {})
    if not isinstance(known, dict) or not all(isinstance(value, str) for value in known.values()):
        raise SettingError("versions must be a table of texts.")
    return Metadata(
        settings=_settings(raw["settings"]),
        model=name,
        content_hash=_short(model, "content_hash"),
        base=_short(model, "base"),
        dtype=_short(data, "dtype"),
        device=_short(data, "device"),
        preset=_short(data, "preset"),
        tiled=data.get("tiled") is True,
        together="together" in data,
        versions=known,
        everything=data,
    )


def _settings(raw: Mapping[str, Any]) -> Settings:
    """Settings, all of them: one that is missing would silently become another picture. Without policies it was made
    where there were none yet."""
    cache_names = [field.name for field in fields(CacheConfig) if field.name in raw or field.name not in POLICIES]
    names = [field.name for field in fields(Settings) if field.name not in ("cache", "solver")] + cache_names
    if "solver" in raw:
        names.append("solver")
    values: dict[str, Any] = {name: raw.get(name) for name in names}
    missing = [name for name in names if name not in raw]
    if missing:
        raise SettingError(f"{missing[0]} is missing.")
    cache = CacheConfig(**{name: values.pop(name) for name in cache_names})
    return Settings(cache=cache, **values)


def _short(table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, str) or not 0 < len(value) <= 500):
        raise SettingError(f"{key} must be a short text.")
    return value


def _no_constant(word: str) -> None:
    raise ValueError(word)
