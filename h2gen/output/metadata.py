"""Metadata: how a picture was made, written into it; checked when it is read, since anybody may have written it."""

from __future__ import annotations

import io
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen._version import __version__
from h2gen.cache.config import RULES, CacheConfig
from h2gen.checks import Rule
from h2gen.errors import MetadataError, SettingError
from h2gen.models.catalogue import model_name
from h2gen.models.load_options import CHANGING
from h2gen.output.embedded import KEY, LARGEST, exif_of, text_in
from h2gen.sanitize import sanitize
from h2gen.settings.table import BY_NAME, TABLE
from h2gen.settings.values import NOT_SETTINGS, Settings
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.cache.kept import KeptBytes
    from h2gen.cache.summary import Summary
    from h2gen.generation.session import Session
    from h2gen.models.peak_memory import PeakMemory

VERSION = 1
_MOST = {"png": 2**20, "jpg": 60_000, "webp": LARGEST, "gif": LARGEST, "mp4": LARGEST}
"""Bytes of metadata per format: Pillow reads at most 1 MiB of text from a PNG, and a JPEG's EXIF holds 64 KiB."""

_SHORT = Rule(str, longest=500)


@dataclass(frozen=True)
class Origin:
    """What a picture was made with. ``name`` is the user's name for the checkpoint, ``content_hash`` the checkpoint's,
    or None if it was not computed; ``changing`` and ``recorded`` are those of ``LoadOptions``."""

    name: str
    content_hash: str | None
    device: str
    dtype: str
    offload: str
    base: str | None = None
    parts: tuple[str, ...] = ()
    changing: Mapping[str, str] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)


def describe(
    settings: Settings,
    source: Origin,
    *,
    seconds: float,
    summary: Summary | None,
    made: datetime | None = None,
    nan_with_cache: bool = False,
    tiled: bool = False,
    together: int = 1,
    peak_memory: PeakMemory | None = None,
    left_out: Mapping[str, str] | None = None,
    preset: str | None = None,
    kept: KeptBytes | None = None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of a new picture: what is written into it, and what ``--json`` prints.

    Args:
        settings: all settings of the picture.
        source: what it was made with.
        seconds: that it took.
        summary: what the cache did; None if it was off.
        made: when; None is now.
        nan_with_cache: it was NaN with the cache and was made again without it.
        tiled: it was decoded in tiles on request.
        together: pictures in its batch.
        peak_memory: the most that was in use meanwhile.
        left_out: what the model did not read, of the ``prompt`` and the ``negative`` one.
        preset: that the cache's settings come from.
        kept: the size of what the cache kept from step to step.
        notes: further facts to record.
    """
    return {
        "version": VERSION,
        "settings": settings.to_json(),
        "model": {
            "name": source.name,
            **({"content_hash": source.content_hash} if source.content_hash else {}),
            **({"base": source.base} if source.base else {}),
            **({"parts": list(source.parts)} if source.parts else {}),
        },
        "device": source.device,
        "dtype": source.dtype,
        "offload": source.offload,
        **source.changing,
        **source.recorded,
        "versions": versions(),
        "made": (made or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        **({"nan_with_cache": True} if nan_with_cache else {}),
        **settings.asked,
        **({"tiled": True} if tiled else {}),
        **({"together": together} if together > 1 else {}),
        **({} if peak_memory is None else {"peak_memory": asdict(peak_memory)}),
        **({"left_out": dict(left_out)} if left_out else {}),
        **({"preset": preset} if preset else {}),
        **({"cache": summary.to_json()} if summary is not None else {}),
        **({"kept_bytes": kept.to_json()} if summary is not None and kept is not None else {}),
        **({"notes": dict(notes)} if notes else {}),
    }


def origin(session: Session, content_hash: str | None = None) -> Origin:
    """The origin of a session's pictures."""
    base = session.checkpoint.base
    return Origin(
        name=model_name(session.checkpoint),
        content_hash=content_hash,
        device=device_name(str(session.device)),
        dtype=str(session.dtype).removeprefix("torch."),
        offload=session.offload,
        base=None if base is None else model_name(base),
        parts=tuple(part.path.name for part in session.checkpoint.parts),
        changing=session.options.changing,
        recorded=session.options.recorded,
    )


def versions() -> dict[str, str]:
    """Versions of h2gen, Python and the libraries that compute."""
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"h2gen": __version__, **packages, "python": platform.python_version()}


def device_name(device: str) -> str:
    """A device's name in metadata: its kind, and for a GPU its model, but not its number."""
    kind = device.split(":")[0]
    if kind == "cuda" and "torch" in sys.modules:
        import torch

        return f"{kind} {torch.cuda.get_device_name(device)}"
    return kind


def to_bytes(metadata: Mapping[str, Any], format: str) -> bytes:
    """The metadata as one line of JSON, for a picture of this format."""
    # Text in a PNG is UTF-8, a third of the length of escapes; in EXIF it is ASCII.
    text = json.dumps(metadata, allow_nan=False, ensure_ascii=format != "png")
    return text.encode("utf-8", "replace")


def to_toml(metadata: Mapping[str, Any]) -> str:
    """The metadata as the sidecar's text; without the notes if it would be too large to be read again."""
    import tomli_w

    whole, file = sanitize(metadata), _Bounded()
    try:
        tomli_w.dump(whole, file)
    except ValueError:
        return tomli_w.dumps({key: value for key, value in whole.items() if key != "notes"})
    return file.getvalue().decode()


class _Bounded(io.BytesIO):
    """Fails if the text is too large to be read again: TOML repeats the names of the enclosing tables."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > LARGEST:
            raise ValueError("too large")
        return super().write(data)


def fitting(metadata: Mapping[str, Any], format: str) -> Mapping[str, Any] | None:
    """The metadata that fit into a picture of this format: without the notes if need be, or None."""
    for candidate in (metadata, {key: value for key, value in metadata.items() if key != "notes"}):
        if len(to_bytes(candidate, format)) <= _MOST[format]:
            return candidate
    return None


def save_options(metadata: Mapping[str, Any], format: str) -> dict[str, Any]:
    """Arguments of Pillow's ``save`` that write the metadata into a picture: text in PNG, EXIF in JPEG and WebP."""
    text = to_bytes(metadata, format)
    if format == "png":
        from PIL import PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_itxt(KEY, text.decode(), zip=len(text) > 4096)
        return {"pnginfo": info}
    return {"exif": exif_of(text)}


@dataclass(frozen=True)
class Metadata:
    """A picture's metadata, checked: each field has its type and is in its range, but may still be untrue.

    ``everything`` is the whole object, for display.
    """

    settings: Settings
    model: str
    content_hash: str | None
    base: str | None
    parts: tuple[str, ...]
    dtype: str | None
    device: str | None
    devices: int
    compiled: bool
    preset: str | None
    tiled: bool
    together: bool
    changing: Mapping[str, str]
    versions: Mapping[str, str]
    everything: Mapping[str, Any]


def read_metadata(path: Path) -> Metadata:
    """The metadata of a picture, or of the ``.toml`` next to it.

    Raises:
        MetadataError: it is not a picture of h2gen, or its metadata are damaged or impossible.
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
        reason = printable(str(error)[:300])  # an untrusted value may be very long
        raise MetadataError(f"The metadata of {shown} cannot be used: {reason}") from error


def _from_toml(path: Path, shown: str) -> dict[str, Any]:
    from h2gen.toml import read_untrusted_toml

    if path.stat().st_size > LARGEST:
        raise MetadataError(f"{shown} is too large to be metadata; give the .toml next to a picture.")
    try:
        return read_untrusted_toml(path, LARGEST)
    except ValueError as error:
        raise MetadataError(f"{shown} cannot be used: {error}.") from error


def _from_picture(path: Path, shown: str) -> dict[str, Any]:
    try:
        text = text_in(path)
    except MetadataError:
        raise
    except Exception as error:
        raise MetadataError(
            f"{shown} is not a PNG, JPEG or WebP picture, nor a GIF, WebP or MP4 video, or it is damaged."
        ) from error
    if text is None:
        beside = path.with_suffix(".toml")
        sidecar = f" Give its sidecar {printable(beside.name)!r} instead." if beside.exists() else ""
        raise MetadataError(
            f"{shown} has no h2gen metadata: it was made with --no-metadata or by another program, or saved again by "
            f"one that drops it, as screenshots, messengers and many sites do.{sidecar}"
        )
    if len(text) > LARGEST:
        raise MetadataError(f"The metadata of {shown} is too large to be h2gen's.")
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"The metadata of {shown} is damaged: not valid JSON.") from error
    if not isinstance(data, dict):
        raise MetadataError(f"The metadata of {shown} is damaged: not a JSON object.")
    return data


def _checked(raw: Mapping[str, Any]) -> Metadata:
    data = sanitize(raw)
    found = data.get("version")
    if isinstance(found, int) and not isinstance(found, bool) and found > VERSION:
        raise SettingError(f"its version {found} is newer than this h2gen can read; update h2gen.")
    if found != VERSION:
        raise SettingError("its version is not one of h2gen's.")
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
        raise SettingError("versions must be a table of strings.")
    return Metadata(
        settings=replace(_settings(raw["settings"]), **{name: data.get(name) for name in NOT_SETTINGS}),
        model=name,
        content_hash=_short(model, "content_hash"),
        base=_short(model, "base"),
        parts=tuple(str(_SHORT.check("parts", name)) for name in Rule(list).check("parts", model.get("parts", []))),
        dtype=_short(data, "dtype"),
        device=_short(data, "device"),
        devices=BY_NAME["devices"].check(data.get("devices", 1)),
        compiled=data.get("compile") is True,
        preset=_short(data, "preset"),
        tiled=data.get("tiled") is True,
        together="together" in data,
        changing={name: BY_NAME[name].check(data[name]) for name in CHANGING if name in data},
        versions=known,
        everything=data,
    )


def _settings(raw: Mapping[str, Any]) -> Settings:
    """All settings of a picture.

    If one were missing, a different picture would be made silently. Only a later setting may be missing: the
    picture is older than it.
    """
    values: dict[str, Any] = {}
    for row in TABLE:
        if row.in_picture:
            if row.name not in raw and not row.later:
                raise SettingError(f"{row.name} is missing.")
            values[row.name] = raw.get(row.name, row.default)
    cache = CacheConfig(**{name: values.pop(name) for name in RULES})
    return Settings(cache=cache, **values)


def _short(table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    if value is None:
        return None
    if value == "":
        raise SettingError(f"{key} is empty.")
    return str(_SHORT.check(key, value))


def _no_constant(word: str) -> None:
    raise ValueError(word)
