"""A comparison as a page: one HTML file that needs no network, with every figure beside it as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from h2gen.errors import RunError
from h2gen.evaluation.report.finding import finding

if TYPE_CHECKING:
    from PIL import Image

    from h2gen.evaluation.results import Comparison

__all__ = ["finding", "write_report"]


def write_report(comparison: Comparison, pictures: Mapping[tuple[str, int], Image.Image] | Path, folder: Path) -> Path:
    """Write ``index.html``, ``results.json`` and ``pictures/`` into a folder; all of it or nothing.

    Args:
        comparison: what was measured. A shot's ``picture`` is where its picture goes, within the folder; one without
            is shown in the page alone, if it is given.
        pictures: by the method's name and the case's index; or a folder that holds them where the shots say. That may
            be the same folder, and the pictures then stay where they are. Some may be missing.
        folder: is made where it is not there. Files of the same names are replaced.

    Returns:
        The page.

    Raises:
        RunError: a file could not be written, or a shot's path leads out of the folder.
    """
    from h2gen.evaluation.report.page import page

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the folder itself: what is renamed has to be on the same file system.
        work = Path(tempfile.mkdtemp(prefix=".h2gen-", suffix=".partial", dir=folder))
        try:
            where = pictures if isinstance(pictures, Path) else work
            _lay_out(comparison, pictures, work, stay=where.resolve() == folder.resolve())
            source = pictures if isinstance(pictures, Path) else dict(pictures)
            _write(work / "results.json", json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
            _write(work / "index.html", page(comparison, source))
            # The page comes last: whoever sees it sees all that it shows.
            names = sorted(path for path in work.rglob("*") if path.is_file() and path.name != "index.html")
            for path in [*names, work / "index.html"]:
                final = folder / path.relative_to(work)
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"The report could not be written to {str(folder)!r}: {reason}; give another folder.") from error
    return folder / "index.html"


def _lay_out(
    comparison: Comparison, pictures: Mapping[tuple[str, int], Image.Image] | Path, work: Path, *, stay: bool
) -> None:
    """Put the pictures where the shots say."""
    for method in comparison.methods:
        for shot in method.shots:
            if not shot.picture:
                continue
            relative = PurePosixPath(shot.picture)
            if relative.is_absolute() or ".." in relative.parts:
                raise RunError(f"The picture's path {shot.picture!r} leads out of the report's folder.")
            if stay:
                continue
            target = work / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(pictures, Path):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(pictures / relative, target)
            elif (method.name, shot.case) in pictures:
                pictures[method.name, shot.case].save(target, "PNG")


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
