"""The HTML report of a comparison: one page that works offline, with every figure in a JSON file next to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from h2gen.errors import OutputError, RunError
from h2gen.evaluation.report.headline import headline_and_summary
from h2gen.evaluation.report.story import RankedRow, Ranking, Story
from h2gen.files import check_folder

if TYPE_CHECKING:
    from h2gen.evaluation.results import Comparison
    from h2gen.evaluation.videos import Shown

__all__ = ["RankedRow", "Ranking", "Story", "check_report_folder", "headline_and_summary", "write_report"]


def check_report_folder(folder: Path | None) -> None:
    """Check that a report can be written to a folder; None is no report.

    Raises:
        OutputError: it is a file, is not empty, or cannot be written to.
    """
    if folder is None:
        return
    if os.path.isfile(folder):
        raise OutputError(f"The report {str(folder)!r} is a file; give a folder.")
    check_folder(folder)
    try:
        taken = folder.is_dir() and any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"Cannot read the folder {str(folder)!r}: {error.strerror}; give another.") from error
    if taken:
        raise OutputError(f"The folder {str(folder)!r} is not empty; give a new one for the report.")


def write_report(
    comparison: Comparison,
    pictures: Mapping[tuple[str, int], Shown] | Path,
    folder: Path,
    story: Story | None = None,
) -> Path:
    """Write ``index.html``, ``results.json`` and ``pictures/`` into a folder; all of it or nothing.

    Args:
        comparison: what was measured. A sample's ``picture`` is its path within the folder; one without a path is only
            embedded in the page, if it is given.
        pictures: by method name and case index; or a folder that holds them at the samples' paths. That may be the same
            folder, in which case they are left in place. Some may be missing.
        folder: created if it does not exist. Files of the same names are replaced.
        story: what the page says besides the comparison's figures; None is that of ``h2gen compare``.

    Returns:
        The page.

    Raises:
        RunError: a file could not be written, or a sample's path leads out of the folder.
    """
    from h2gen.evaluation.report.page import page

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the folder itself: renaming needs the same file system.
        work = Path(tempfile.mkdtemp(prefix=".h2gen-", suffix=".partial", dir=folder))
        try:
            where = pictures if isinstance(pictures, Path) else work
            _lay_out(comparison, pictures, work, stay=where.resolve() == folder.resolve())
            source = pictures if isinstance(pictures, Path) else dict(pictures)
            _write(work / "results.json", json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
            _write(work / "index.html", page(comparison, source, story))
            # The page comes last, so that everything it shows is there.
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
    comparison: Comparison, pictures: Mapping[tuple[str, int], Shown] | Path, work: Path, *, stay: bool
) -> None:
    """Put the pictures at the samples' paths."""
    from h2gen.evaluation.videos import Video
    from h2gen.output.save import encode

    for method in comparison.methods:
        for sample in method.samples:
            if not sample.picture:
                continue
            relative = PurePosixPath(sample.picture)
            if relative.is_absolute() or ".." in relative.parts:
                raise RunError(f"The picture's path {sample.picture!r} leads out of the report's folder.")
            if stay:
                continue
            target = work / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(pictures, Path):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(pictures / relative, target)
            elif (method.name, sample.case) in pictures:
                image = pictures[method.name, sample.case]
                target.write_bytes(image.webp() if isinstance(image, Video) else encode(image, "png"))


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
