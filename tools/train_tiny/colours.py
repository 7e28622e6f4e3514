"""The colours that a caption can name."""

from __future__ import annotations

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "gray": (140, 143, 150),
    "red": (220, 50, 47),
    "orange": (245, 150, 50),
    "yellow": (250, 215, 70),
    "green": (90, 180, 90),
    "blue": (70, 130, 225),
    "purple": (140, 90, 200),
    "pink": (250, 165, 200),
    "brown": (140, 95, 60),
}
TINTS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "orange": (245, 145, 35),
    "yellow": (250, 210, 50),
    "green": (60, 175, 75),
    "blue": (55, 115, 230),
    "purple": (145, 75, 205),
    "pink": (250, 130, 185),
}
