"""``--preview`` and its relatives: checked before the model is loaded, and what becomes of each preview."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from h2gen.errors import OutputError, SettingError
from h2gen.files import partial_file
from h2gen.wording import shown

if TYPE_CHECKING:
    from h2gen.generation.preview import Preview, PreviewObserver, Previews
    from h2gen.generation.session import Session
    from h2gen.output.save import Target
    from h2gen.settings.values import Settings


@dataclass(frozen=True)
class PreviewOptions:
    """Where previews go. Without ``in_terminal`` and ``file`` there are none.

    Args:
        in_terminal: the observer gets them.
        file: each overwrites the one before.
        every: only every N-th step.
        model: the folder of a tiny autoencoder; None if it is not needed.
    """

    in_terminal: bool = False
    file: Target | None = None
    every: int = 1
    model: Path | None = None

    def __bool__(self) -> bool:
        return self.in_terminal or self.file is not None

    def check_file(self, targets: Sequence[Target], seeds: Sequence[int], settings: Settings) -> None:
        """Check that previews replace neither a picture of the same run nor a file that it is made from.

        Args:
            targets, seeds: of the pictures.
            settings: of all of them.

        Raises:
            SettingError: they would.
        """
        from h2gen.settings.values import FILES

        if self.file is None:
            return
        file, noun = self.file.path("", 0), settings.noun
        pictures = [each.path(settings.title, seed) for each, seed in zip(targets, seeds, strict=True)]
        inputs = [each.path for name in FILES for each in getattr(settings, name) if each.path is not None]
        for paths, what in ((pictures, f"where a {noun} goes"), (inputs, f"what the {noun} is made from")):
            if os.path.realpath(file) in map(os.path.realpath, paths):
                raise SettingError(f"--preview-file {shown(str(file))} is {what}; give another file.")


def preview_options(
    settings: Settings,
    asked: bool,
    file: Path | None,
    every: int | None,
    model: str | None,
    *,
    terminal: bool,
    download: bool = True,
) -> PreviewOptions:
    """Check the options about previews.

    Args:
        settings: of what is made.
        asked, file, every, model: what was given.
        terminal: whether the terminal can show pictures.
        download: whether the tiny autoencoder may be downloaded; without it, previews that need it are left out.

    Raises:
        SettingError: an option has no effect without another, no tiny autoencoder has the name, or there is one and a
            video is made.
        OutputError: the file cannot be written.
        ModelError: the tiny autoencoder cannot be used.
    """
    from h2gen.output.save import target_of

    if not asked and file is None:
        for name, given in (("preview_every", every), ("preview_model", model)):
            if given is not None:
                raise SettingError(f"--{name.replace('_', '-')} needs --preview or --preview-file; add one.")
    target = None if file is None else target_of(str(file), None)
    if target is not None and target.stem is None:
        raise OutputError(f"--preview-file is {str(file)!r}; give a .png, .jpg or .webp file.")
    folder = None
    if model is not None:
        if settings.frames is not None:
            raise SettingError("--preview-model decodes pictures, and this model makes videos; leave it out.")
        from h2gen.models.tiny_autoencoder import find_tiny_autoencoder

        folder = find_tiny_autoencoder(model, download=download)
    in_terminal = asked and terminal
    return PreviewOptions(in_terminal, target, every or 1, folder if in_terminal or target is not None else None)


def open_previews(
    options: PreviewOptions, session: Session, show: PreviewObserver, complain: Callable[[str], None]
) -> Previews | None:
    """The previews that a session is to make; None if there are none.

    Args:
        options: where they go.
        session: makes them.
        show: gets them, if they go to the terminal.
        complain: gets a line if the file cannot be written; then no more are.

    Raises:
        ModelError: the tiny autoencoder does not fit the model, or is damaged.
    """
    if not options:
        return None
    from h2gen.generation.painters import TinyPainter
    from h2gen.generation.preview import Previews

    painter = None
    if options.model is not None:
        from h2gen.models.tiny_autoencoder import load_tiny_autoencoder

        channels = session.pipe.vae.config.latent_channels
        painter = TinyPainter(load_tiny_autoencoder(options.model, session.dtype, session.device, channels))
    write = None if options.file is None else _Writer(options.file, complain)

    def on_preview(preview: Preview) -> None:
        if options.in_terminal:
            show(preview)
        if write is not None:
            write(preview)

    return Previews(on_preview, options.every, sparing=True, painter=painter)


def watched(session: Session, on_preview: PreviewObserver | None) -> AbstractContextManager[None]:
    """Let a session call ``on_preview`` with a preview of every step inside the context; None makes no previews."""
    if on_preview is None:
        return nullcontext()
    from h2gen.generation.preview import Previews, previewed

    return previewed(session, Previews(on_preview))


class _Writer:
    """Writes previews to one file, until that fails."""

    def __init__(self, target: Target, complain: Callable[[str], None]) -> None:
        self._target, self._complain = target, complain
        self._path = target.path("", 0)
        self._failed = False

    def __call__(self, preview: Preview) -> None:
        from h2gen.output.save import encode

        if self._failed:
            return
        data = encode(preview.image, self._target.format)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with partial_file(data, self._path.parent, durable=False) as partial:
                os.replace(partial, self._path)
        except OSError as error:
            self._failed = True
            self._complain(f"No more previews are written to {str(self._path)!r}: {error.strerror or error}.")
