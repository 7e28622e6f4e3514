"""The emoji as pictures with transparency: each concept in up to three styles."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tools.train_tiny.concepts import Concept, concepts
from tools.train_tiny.packages import PACKAGES, fetch

SIDE = 192
"""Side of a sprite in pixels."""
STYLES = ("3d", "flat", "cartoon")
_PICTURES, _INDEX, _NOTICE = "sprites.npy", "sprites.json", "NOTICE.md"


@dataclass(frozen=True)
class Sprite:
    """The concept of a picture, as an index into the list, and its style.

    ``colourful`` means that most of it is coloured, so that it can be tinted.
    """

    concept: int
    style: str
    colourful: bool


@dataclass(frozen=True)
class Sprites:
    """The data set: ``pictures`` is RGBA, ``(N, SIDE, SIDE, 4)`` uint8, and ``index`` describes them."""

    pictures: npt.NDArray[np.uint8]
    index: list[Sprite]


def build(folder: Path, packages: Path) -> Sprites:
    """Fetch the packages and draw every concept, into three files, reproducibly."""
    homes = fetch(packages)
    names: dict[str, Any] = _json(homes["unicode-emoji-json"] / "data-by-emoji.json")
    emoji = {about["name"].lower(): character for character, about in names.items()}
    flat = _IconSet(homes["@iconify-json/fluent-emoji-flat"])
    cartoon = _IconSet(homes["@iconify-json/noto"])
    pictures, index = [], []
    for number, concept in enumerate(concepts()):
        codes = _codes(emoji, concept)
        drawn = {
            "3d": _file(homes["@lobehub/fluent-emoji-3d"] / "assets", codes),
            "flat": flat.draw(codes),
            "cartoon": cartoon.draw(codes),
        }
        for style, picture in drawn.items():
            if picture is not None:
                pictures.append(np.asarray(picture.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
                index.append(Sprite(number, style, _colourful(pictures[-1])))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / _PICTURES, np.stack(pictures))
    (folder / _INDEX).write_text(json.dumps([asdict(sprite) for sprite in index]), encoding="utf-8")
    (folder / _NOTICE).write_text(notice(), encoding="utf-8")
    return Sprites(np.stack(pictures), index)


def load(folder: Path) -> Sprites:
    """Load what ``build`` wrote."""
    index = [Sprite(**sprite) for sprite in _json(folder / _INDEX)]
    return Sprites(np.load(folder / _PICTURES), index)


def notice() -> str:
    """A table of the sources of pictures and names."""
    rows = [f"| {p.name} {p.version} ({p.upstream}) | {p.licence} | {p.used_for} |" for p in PACKAGES]
    return "\n".join(["| package | licence | used for |", "|---|---|---|", *rows]) + "\n"


class _IconSet:
    """A package of SVG icons in Iconify's format."""

    def __init__(self, home: Path) -> None:
        self._set = _json(home / "icons.json")
        self._names: dict[str, str] = _json(home / "chars.json")

    def draw(self, codes: list[str]) -> Image.Image | None:
        import resvg_py

        name = next((self._names[code] for code in codes if code in self._names), None)
        if name is None:
            return None
        if name not in self._set["icons"]:
            name = self._set["aliases"][name]["parent"]
        icon = self._set["icons"][name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(side, self._set.get(side, 16)) for side in ("width", "height"))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{SIDE}" height="{SIDE}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))))


def _file(folder: Path, codes: list[str]) -> Image.Image | None:
    found = next((folder / f"{code}.webp" for code in codes if (folder / f"{code}.webp").exists()), None)
    return None if found is None else Image.open(found)


def _codes(emoji: dict[str, str], concept: Concept) -> list[str]:
    """Spellings of an emoji in the packages: its code points, with and without the variation selector."""
    code = "-".join(f"{ord(character):x}" for character in emoji[concept.unicode])
    bare = code.replace("-fe0f", "")
    return list(dict.fromkeys([code, bare, f"{bare}-fe0f"]))


def _colourful(picture: npt.NDArray[np.uint8]) -> bool:
    colour = picture[picture[..., 3] > 128][:, :3].astype(np.float32)
    return bool((np.ptp(colour, axis=1) > 60).mean() > 0.5)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
