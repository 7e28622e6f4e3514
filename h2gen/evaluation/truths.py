"""The images of very many steps, which methods that are added later are scored against too."""

from __future__ import annotations

import contextlib
import io
from typing import IO

from h2gen.errors import OutputError
from h2gen.evaluation.methods import TRUTH_STEPS
from h2gen.evaluation.videos import Shown, Video, exact_bytes, kept_picture, kept_video
from h2gen.files import nameless_file


class Truths:
    """Keeps them in a file without a name: the videos of all cases are too large for memory."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[int, int]] = {}
        """Where the image of each case begins, and its bytes."""

    def keep(self, case: int, image: Shown) -> None:
        """Write the image of a case.

        Raises:
            OutputError: it cannot be written.
        """
        data = exact_bytes(image)
        try:
            self._file = self._file or nameless_file()
            place = self._file.seek(0, io.SEEK_END)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            what = f"{'video' if isinstance(image, Video) else 'picture'}s of {TRUTH_STEPS} steps"
            raise OutputError(
                f"Cannot keep the {what}: {error.strerror or error}; set TMPDIR to a folder with more room."
            ) from error
        self._places[case] = place, len(data)

    def find(self, case: int) -> Shown | None:
        """The image of a case; None if it was not kept."""
        if self._file is None or case not in self._places:
            return None
        place, size = self._places[case]
        self._file.seek(place)
        data = self._file.read(size)
        return kept_picture(io.BytesIO(data)) or kept_video(io.BytesIO(data))

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, which ``keep`` has reported
                self._file.close()
            self._file = None
            self._places.clear()
