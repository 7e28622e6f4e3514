"""Previews in a terminal: as pixels where it can show them (kitty, iTerm2, sixel), otherwise as half blocks."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.color import Color
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments
from rich.style import Style

from h2gen.cli.console import say
from h2gen.generation.preview_options import PreviewOptions, preview_options
from h2gen.models.hub import absent

if TYPE_CHECKING:
    from PIL import Image

    from h2gen.settings.values import Settings


def options_for(
    console: Console,
    settings: Settings,
    preview: bool,
    file: Path | None,
    every: int | None,
    model: str | None,
    *,
    dry_run: bool = False,
) -> PreviewOptions:
    """The checked options about previews; says so if there is no terminal to show them in.

    With ``dry_run`` nothing is downloaded; what would be is said.

    Raises:
        UsageError: see ``preview_options``.
    """
    able = console.is_terminal and not console.quiet and console.color_system is not None and not console.no_color
    options = preview_options(settings, preview, file, every, model, terminal=able, download=not dry_run)
    if model is not None and options.model is None:
        say(console, absent(model, "it"), "dim")
    if preview and not able:
        why = "This terminal shows no colours" if sys.stderr.isatty() else "stderr is not a terminal"
        say(console, f"{why}, so --preview shows nothing; use --preview-file FILE instead.", "yellow")
    return options


class TerminalPicture:
    """The latest preview, drawn into a given number of character cells."""

    def __init__(self) -> None:
        self._pixels = pixels_of_terminal()  # now: while a view is live the terminal must not be asked
        self._image: Image.Image | None = None
        self._drawn: tuple[tuple[int, int], Any] | None = None

    def __bool__(self) -> bool:
        return self._image is not None

    def show(self, image: Image.Image) -> None:
        """Show another image from now on."""
        self._image = image
        self._forget()

    def cells(self, columns: int, rows: int) -> tuple[int, int]:
        """The largest columns and rows within these that keep its shape: a cell is twice as high as wide."""
        assert self._image is not None
        width, height = self._image.size
        columns = max(1, min(columns, round(2 * rows * width / height)))
        return columns, max(1, min(rows, round(columns * height / width / 2)))

    def render(self, columns: int, rows: int) -> RenderableType:
        """The image in exactly these cells."""
        assert self._image is not None
        if self._drawn is None or self._drawn[0] != (columns, rows):
            self._forget()
            self._drawn = (columns, rows), (self._pixels or half_blocks)(self._image, columns, rows)
        drawn: RenderableType = self._drawn[1]
        return drawn

    def _forget(self) -> None:
        """Let the terminal free an image that is not shown any more."""
        if self._drawn is not None and hasattr(self._drawn[1], "cleanup"):
            self._drawn[1].cleanup()
        self._drawn = None


@cache
def pixels_of_terminal() -> Any:
    """textual-image's renderable for a terminal that shows pixels; None for others, and without textual-image.

    Asking the terminal takes up to a fifth of a second, so it is asked once.
    """
    if find_spec("textual_image") is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    from textual_image.renderable import Image, SixelImage, TGPImage

    return Image if Image in (TGPImage, SixelImage) else None


def half_blocks(image: Image.Image, columns: int, rows: int) -> Segments:
    """An image as rows of half blocks: each character is one pixel above another."""
    from PIL import Image as Images

    data = image.resize((columns, 2 * rows), Images.Resampling.LANCZOS).tobytes()
    colours = [Color.from_rgb(*data[place : place + 3]) for place in range(0, len(data), 3)]
    segments = []
    for row in range(0, len(colours), 2 * columns):
        above, below = colours[row : row + columns], colours[row + columns : row + 2 * columns]
        segments += [Segment("▀", Style.from_color(one, two)) for one, two in zip(above, below, strict=True)]
        segments.append(Segment.line())
    return Segments(segments)
