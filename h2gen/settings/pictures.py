"""Open input pictures: checked before they are decoded, upright, in RGB, in the size that is needed.

A picture file may come from anywhere. Only formats with a plain decoder are opened. The size in pixels is read from the
header, and a picture with more than ``MOST_PIXELS`` is never decoded.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.errors import SettingError
from h2gen.settings.inputs import FileRule, InputFile
from h2gen.wording import printable

if TYPE_CHECKING:
    from PIL import Image

    from h2gen.models.defaults import ModelDefaults

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened. No other decoder of Pillow ever reads a file: some of them, such as PostScript's, run programs."""
MOST_PIXELS = 2**27
"""134 megapixels: more than a camera's sensor has, and half a gigabyte once decoded."""
LARGEST = 2**29
"""Bytes of a file: the largest picture, stored without compression."""
_MOST_KEPT = 2**25
"""Pixels of all pictures that stay decoded: the pictures of a batch often share their inputs."""
_HALF = 128
"""The least value of a mask where the picture changes."""
_WHITE = 250
_PROFILES = {"RGB": ("RGB", "RGBA", "P", "PA"), "GRAY": ("L", "LA"), "CMYK": ("CMYK",)}
"""By a profile's colours, the modes of pictures that it may belong to; the first is the one that is converted."""


class Held(str):
    """Stands for the path of a picture that a Python caller gave as an object."""

    image: Image.Image


@dataclass(frozen=True)
class PictureRule(FileRule):
    """What a setting with pictures may be: as ``FileRule``, or in Python also a PIL image, or ``(PICTURE, NUMBER)``."""

    what: str = "picture"

    def check(self, name: str, value: Any) -> tuple[InputFile, ...]:
        return super().check(name, [value] if _is_pair(value) else value)

    def _checked(self, name: str, item: Any) -> InputFile:
        if _is_pair(item):
            if self.number is None:
                raise SettingError(f"{name} takes no number; give the {self.what} alone.")
            return replace(self._checked(name, item[0]), scale=self.number.check(f"{name}: the number", item[1]))
        if type(item).__module__.split(".")[0] != "PIL":
            return super()._checked(name, item)
        held = Held("a PIL image")
        with _one_line(str(held)):  # it may not be decoded yet
            held.image = item.copy()  # as it is now: the caller may draw on it later
        return InputFile("a PIL image", _hash_of(held.image), path=held)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], (int, float))


@dataclass(frozen=True)
class Opened:
    """A decoded picture.

    Args:
        image: upright, in RGB, on white where it was transparent; a mask in L, 255 where the picture changes.
        animated: it was the first of several frames.
    """

    image: Image.Image
    animated: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.image.size


_kept: OrderedDict[tuple[str, bool], Opened] = OrderedDict()
"""By hash, and whether it is used as a mask; the least recently used first."""
_one_at_a_time = threading.Lock()
"""For ``_kept``, which all sessions share."""


def open_picture(item: InputFile, *, mask: bool = False) -> Opened:
    """Decode a picture that was found and hashed.

    Args:
        item: the file.
        mask: whether it is a mask: white changes, black stays. Transparent parts change too, as if they had been
            erased; but if everything visible is white, the visible part changes, as if it had been painted.

    Raises:
        SettingError: it cannot be read or decoded, is too large, is not the one that was hashed, or is a mask
            without white.
    """
    with _one_at_a_time:
        return _opened(item, mask)


def _opened(item: InputFile, mask: bool) -> Opened:
    key = (item.sha256, mask)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    shown = repr(printable(item.name))
    with _one_line(shown):
        opened = _open(item, shown)
        opened = Opened(_as_mask(opened.image) if mask else _as_rgb(opened.image), opened.animated)
    if mask and int(opened.image.getextrema()[1]) < _HALF:  # type: ignore[arg-type]
        raise SettingError(f"The mask {shown} is black, so nothing would change; paint white what should change.")
    _kept[key] = opened
    while sum(math.prod(each.size) for each in _kept.values()) > _MOST_KEPT and len(_kept) > 1:
        _kept.popitem(last=False)
    return opened


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in another size with its aspect ratio; what does not fit is cropped on two opposite sides."""
    from PIL import Image, ImageOps

    if image.size == size:
        return image
    return ImageOps.fit(image, size, Image.Resampling.BILINEAR if image.mode == "L" else Image.Resampling.LANCZOS)


def size_like(size: tuple[int, int], defaults: ModelDefaults) -> tuple[int, int]:
    """The size of a picture made from one of this size: scaled down to the model's default area, and rounded."""
    scale = min(1.0, math.sqrt(defaults.width * defaults.height / math.prod(size)))
    multiple = defaults.size_multiple
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return width, height


def _open(item: InputFile, shown: str) -> Opened:
    """The picture as it is stored, upright."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    from h2gen.files import sha256

    if isinstance(item.path, Held):
        image: Image.Image = item.path.image
        animated = False
    else:
        data = _read(Path(item.path or ""), shown)
        if sha256(data) != item.sha256:
            raise SettingError(f"{shown} has changed since this command began; run it again.")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            *others, last = FORMATS
            raise SettingError(
                f"{shown} is not a picture that h2gen can read ({', '.join(others)} or {last}); convert it."
            ) from error
        except Image.DecompressionBombError as error:
            raise _too_large(shown) from error
        animated = bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # a photo with its preview
    if math.prod(image.size) > MOST_PIXELS:
        raise _too_large(shown, f" ({image.width}x{image.height})")
    image.load()
    with suppress(Exception):  # a damaged EXIF must not cost the picture
        image = ImageOps.exif_transpose(image)
    return Opened(image, animated)


def _read(path: Path, shown: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise SettingError(f"{shown} cannot be read: {error.strerror or error}.") from error
    if len(data) > LARGEST:
        raise SettingError(f"{shown} is larger than {LARGEST // 2**20} MiB; give a smaller picture.")
    return data


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    image = _in_srgb(_in_8_bits(image), image.info.get("icc_profile"))
    if not image.has_transparency_data:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture with its colours converted from its ICC profile to sRGB, as viewers show them.

    A profile of sRGB itself changes nothing, and one that is damaged or of other channels than the picture is ignored.
    """
    if not profile:
        return image
    from PIL import ImageCms

    with suppress(Exception):  # Pillow may also lack the library that converts
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        modes = _PROFILES[source.profile.xcolor_space.strip()]
        if image.mode in modes:
            colours = image.convert(modes[0])
            image = (
                ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
            )
            if alpha is not None:
                image.putalpha(alpha)
    return image


def _as_mask(image: Image.Image) -> Image.Image:
    from PIL import Image, ImageChops

    image = _in_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("L")
    whole = image.convert("RGBA")
    alpha = whole.getchannel("A")
    if int(alpha.getextrema()[0]) == 255:  # type: ignore[arg-type]
        return whole.convert("L")
    on_white = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("L")
    if int(on_white.getextrema()[0]) >= _WHITE:  # type: ignore[arg-type]
        return alpha
    return ImageChops.invert(alpha)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 bits in 8: Pillow's own conversion would cut off whatever is brighter than 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise SettingError("has 32 bits per channel; save it with 8 or 16.")
    if image.mode == "I" and values.max() < 256:
        return Image.fromarray(values.astype(np.uint8))
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


@contextmanager
def _one_line(shown: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a one-line error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its size in pixels, which is checked, or odd metadata
            yield
    except SettingError as error:
        raise SettingError(str(error) if shown in str(error) else f"{shown} {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise SettingError(f"{shown} is damaged or cut short; save or download it again.") from error


def _too_large(shown: str, size: str = "") -> SettingError:
    most = MOST_PIXELS // 10**6
    return SettingError(f"{shown} has more than {most} megapixels{size}; give a smaller picture.")


def _hash_of(image: Image.Image) -> str:
    """The hash of a picture's pixels, which has no file."""
    from h2gen.files import sha256

    colours = (image.getpalette("RGB"), image.info.get("transparency")) if image.mode in ("P", "PA") else ""
    head = f"{image.mode} {image.width}x{image.height} {colours or ''}".encode()
    return sha256(head + (image.info.get("icc_profile") or b"") + image.tobytes())
