"""The images of very many steps, which methods that are added later are scored against too."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from h2gen.errors import OutputError
from h2gen.evaluation.videos import Shown, Video, keep_exactly, kept_picture, kept_video


class Truths:
    """Keeps them in a temporary folder: the videos of all cases are too large for memory."""

    def __init__(self) -> None:
        self._folder: TemporaryDirectory[str] | None = None

    def keep(self, case: int, image: Shown) -> None:
        """Write the image of a case.

        Raises:
            OutputError: it cannot be written.
        """
        if self._folder is None:
            try:
                self._folder = TemporaryDirectory(prefix="h2gen-")
            except OSError as error:
                raise OutputError(f"There is no temporary folder to write to: {error.strerror or error}.") from error
        keep_exactly(image, Path(self._folder.name, f"{case}.{'npz' if isinstance(image, Video) else 'png'}"))

    def find(self, case: int) -> Shown | None:
        """The image of a case; None if it was not kept."""
        if self._folder is None:
            return None
        stem = Path(self._folder.name, str(case))
        return kept_picture(stem.with_suffix(".png")) or kept_video(stem.with_suffix(".npz"))

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
