"""Writes the images of a comparison into its report's folder, as soon as each is made."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from h2gen.errors import RunError
from h2gen.evaluation.methods import Method
from h2gen.evaluation.videos import Shown, Video
from h2gen.output.save import encode, slug


class ReportPictures:
    """The images in a report's folder, ``pictures/CASE-METHOD.png``, of videos ``.webp``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stems: dict[str, str] = {}

    def write(self, image: Shown, method: Method, case: int) -> str:
        """Write what a method made of a case; returns its path within the folder.

        Raises:
            RunError: it cannot be written.
        """
        video = isinstance(image, Video)
        path = f"pictures/{case:03}-{self._stem(method)}.{'webp' if video else 'png'}"
        try:
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / path).write_bytes(image.webp() if isinstance(image, Video) else encode(image, "png"))
        except OSError as error:
            raise RunError(
                f"The {'video' if video else 'picture'} {path!r} could not be written to {str(self._folder)!r}: "
                f"{error.strerror or error}."
            ) from error
        return path

    def _stem(self, method: Method) -> str:
        """A method's label as part of a file name, with a number if another method has the same one."""
        if method.name not in self._stems:
            stem, taken = slug(method.label), set(self._stems.values())
            free = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
            self._stems[method.name] = next(name for name in free if name not in taken)
        return self._stems[method.name]
