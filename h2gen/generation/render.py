"""From settings to saved pictures: load, make, describe, name, save. Reports to an observer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.errors import PromptWarning, RunError, SettingError, Stopped
from h2gen.generation.preview_options import PreviewOptions, open_previews
from h2gen.generation.relief import Relief, with_relief
from h2gen.models.attention_names import DEFAULT as DEFAULT_ATTENTION

if TYPE_CHECKING:
    from h2gen.cache.trace import StepRecord
    from h2gen.generation.preview import Preview
    from h2gen.generation.result import Result
    from h2gen.generation.session import Session
    from h2gen.generation.unread import Unread
    from h2gen.output.metadata import Metadata
    from h2gen.output.save import Target
    from h2gen.output.trace_file import TraceFile
    from h2gen.settings.resolve import Request
    from h2gen.settings.values import Settings

StepCallback = Callable[["StepRecord"], None]


@dataclass(frozen=True)
class RenderOptions:
    """What is written besides the pixels, and how many pictures are made at once.

    Args:
        trace: write each step's decisions to this file.
        metadata: write into each picture how it was made.
        sidecar: also write it into a ``.toml`` next to each picture.
        batch_size: pictures per batch.
        overwrite: replace existing files.
        strict: an option that the model ignores is an error.
        preview: where previews go.
    """

    trace: Path | None = None
    metadata: bool = True
    sidecar: bool = False
    batch_size: int = 1
    overwrite: bool = False
    strict: bool = False
    preview: PreviewOptions = field(default_factory=PreviewOptions)


@dataclass(frozen=True)
class SavedPicture:
    """A picture on the disk.

    Args:
        path: the file.
        result: the picture and how it was made.
        metadata: how it was made, whether or not it was written.
        described: False if its metadata was too long for its format.
        trace: the trace file, or None.
        trace_error: why the trace file is incomplete, or None.
    """

    path: Path
    result: Result
    metadata: Mapping[str, Any] = field(repr=False)
    described: bool = True
    trace: Path | None = None
    trace_error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The picture as ``--json`` prints it, and ``info --json`` later."""
        return {"path": str(self.path), **self.metadata}


class RenderObserver:
    """Override what you want to know about; every method but ``remark`` does nothing by default."""

    def loading(self, request: Request) -> AbstractContextManager[object]:
        """Around loading the model."""
        return nullcontext()

    def loaded(self, renderer: Renderer) -> None:
        """The model is loaded."""

    def interruptible(self, renderer: Renderer) -> AbstractContextManager[object]:
        """Around making one batch, whatever is tried for it."""
        return nullcontext()

    def making(self, renderer: Renderer, settings: Sequence[Settings]) -> AbstractContextManager[StepCallback | None]:
        """Around each attempt at one batch; the callable that it yields gets each step; None without an observer."""
        return nullcontext()

    def notice(self, text: str) -> None:
        """How the model is loaded so that it fits into memory; called within ``loading``."""

    def previewed(self, preview: Preview) -> None:
        """A preview of the batch that is being made, if the options ask for previews in the terminal."""

    def remark(self, text: str) -> None:
        """A prompt is not read to its end; a warning by default."""
        warnings.warn(text, PromptWarning, stacklevel=2)

    def relieved(self, notice: str) -> None:
        """Memory ran out, and the current pictures are made differently; ``notice`` says how."""

    def saved(self, picture: SavedPicture) -> None:
        """A picture is on the disk."""


def render(
    request: Request,
    seeds: Sequence[int],
    options: RenderOptions,
    observer: RenderObserver,
    *,
    tiled: bool = False,
) -> list[SavedPicture]:
    """Make one picture per seed, in batches; each batch is saved before the next one begins.

    Where the pictures and the trace go is checked before the model is loaded.

    Args:
        request: resolved settings; its own seed is ignored.
        seeds: in the order to make them.
        options: what else is written.
        observer: receives progress events.
        tiled: decode in tiles whatever the size.

    Raises:
        Stopped: Ctrl-C, after some of several pictures were saved.
        KeyboardInterrupt: Ctrl-C, before that.
        H2GenError: a picture could not be made or saved.
    """
    targets = check_output(request, options, seeds)
    renderer = open_renderer(request, options, observer)
    settings = [replace(request.settings, seed=seed) for seed in seeds]
    saved: list[SavedPicture] = []
    while len(saved) < len(seeds):
        part = slice(len(saved), len(saved) + options.batch_size)
        try:
            saved += renderer.render(settings[part], targets[part], request.preset, tiled=tiled)
        except KeyboardInterrupt:
            if not renderer.saved:
                raise
            raise Stopped(f"Stopped; {renderer.saved} of {len(seeds)} {request.settings.noun}s are saved.") from None
    return saved


def check_output(request: Request, options: RenderOptions, seeds: Sequence[int]) -> list[Target]:
    """Check that the pictures and the trace can be written; nothing is.

    Returns:
        Where each picture goes.

    Raises:
        SettingError: there are several pictures and a trace; the model needs an input picture; or, as ``strict`` asks,
            it ignores an option; or previews would replace a finished picture.
        OutputError: something could not be written.
    """
    from h2gen.output.save import target_of
    from h2gen.output.trace_file import TraceFile
    from h2gen.settings.editing import check_inputs
    from h2gen.settings.model_options import check_strict

    if options.strict:
        check_strict(request.ignored)
    check_inputs(request.checkpoint, request.settings)
    target = target_of(request.out, request.format, video=request.settings.frames is not None)
    if options.trace is not None:
        if len(seeds) > 1:
            raise SettingError(
                f"--trace records one {request.settings.noun}, not {len(seeds)}; leave it out or give one seed."
            )
        TraceFile.check(options.trace, options.overwrite)
    numbered = target.stem is not None and len(seeds) > 1
    targets = [replace(target, stem=f"{target.stem}-{seed}") if numbered else target for seed in seeds]
    options.preview.check_file(targets, seeds, request.settings)
    return targets


def open_renderer(request: Request, options: RenderOptions, observer: RenderObserver) -> Renderer:
    """Load the request's model.

    Raises:
        ModelError, DeviceError: it cannot be loaded there.
        SettingError: it refuses an option, or ignores one and the options are ``strict``.
        OutOfMemory: memory does not suffice for loading it.
    """
    with observer.loading(request):
        # Only now: these load torch and diffusers, which takes seconds.
        if request.load.devices > 1:
            from h2gen.generation.companions import open_together as open_session
        else:
            from h2gen.generation.session import open_session
        from h2gen.settings.workload import work_of

        _check_attention(request)
        work = work_of(request.settings, request.checkpoint, options.batch_size, preview_model=options.preview.model)
        session = open_session(request.checkpoint, request.load, work, observer.notice)
    renderer = Renderer(session, options, observer)
    renderer.check_options(request)
    observer.loaded(renderer)
    return renderer


def _check_attention(request: Request) -> None:
    if request.settings.attention != DEFAULT_ATTENTION:
        from h2gen.models.attention import check_attention

        check_attention(request.settings.attention, request.load.device, request.load.dtype)


class Renderer:
    """A loaded model that saves the pictures it makes.

    Args:
        session: the model; its checkpoint is hashed meanwhile.
        options: what else is written.
        observer: receives progress events.

    Raises:
        ModelError: the tiny autoencoder for previews does not fit the model, or is damaged.
    """

    def __init__(self, session: Session, options: RenderOptions, observer: RenderObserver) -> None:
        self.session, self.options = session, options
        self._observer = observer
        self._previews = open_previews(options.preview, session, observer.previewed, observer.relieved)
        self._hashing = session.identity if options.metadata or options.sidecar else None
        self.facts = {
            "model": session.checkpoint.name,
            "device": str(session.device),
            "dtype": str(session.dtype).removeprefix("torch."),
            **session.options.changing,
            **session.options.recorded,
        }
        """What pictures are made with, as trace files record it."""
        self.saved = 0
        """Pictures saved so far."""
        self._remarked: set[Unread] = set()

    def render(
        self, settings: Sequence[Settings], targets: Sequence[Target], preset: str | None = None, *, tiled: bool = False
    ) -> list[SavedPicture]:
        """Make pictures in one batch and save them. They may differ in prompt and seed only.

        Pictures that are finished when a later one fails, or is interrupted, are saved before the error is raised.

        Args:
            settings: one per picture.
            targets: where each picture goes.
            preset: the preset to record.
            tiled: decode in tiles whatever the size.

        Raises:
            KeyboardInterrupt: the session was interrupted.
            H2GenError: a picture could not be made or saved.
        """
        # Hashing fails before pictures are made, not after: a damaged checkpoint must not cost a finished picture.
        if self._hashing is not None:
            self.session.content_hash()
        self._remark(settings)
        finished: list[Result] = []
        saved: list[SavedPicture] = []
        trace_error: str | None = None
        try:
            trace_error = self._make(settings, tiled, finished)
        finally:
            failures: list[str] = []
            for result, target in zip(finished, targets, strict=False):
                try:
                    saved.append(self._save(replace(result, preset=preset), target, trace_error))
                except RunError as error:
                    failures.append(str(error))  # the others are saved, or put where they are safe
                    continue
                self.saved += 1
                self._observer.saved(saved[-1])
            if failures:
                raise RunError("\n".join(failures))
        return saved

    def _remark(self, settings: Sequence[Settings]) -> None:
        """Report what the model does not read of the prompts, once per text."""
        from h2gen.generation.text import unread

        for each in (each for one in settings for each in unread(self.session.pipe, one)):
            if each not in self._remarked:
                self._remarked.add(each)
                self._observer.remark(str(each))

    def _save(self, result: Result, target: Target, trace_error: str | None) -> SavedPicture:
        from h2gen.output.save import keep

        options = self.options
        named = result.settings.title, result.settings.seed
        old = options.overwrite and options.metadata and target.has_sidecar(*named)
        file = result.file(target.format, metadata=options.metadata, sidecar=options.sidecar or old)
        path = keep(
            file.data,
            target.folder,
            target.name(*named),
            target.ending,
            sidecar=file.sidecar,
            overwrite=options.overwrite,
        )
        return SavedPicture(path, result, file.metadata, file.described, options.trace, trace_error)

    def _previewed(self) -> AbstractContextManager[None]:
        if self._previews is None:
            return nullcontext()
        from h2gen.generation.preview import previewed

        return previewed(self.session, self._previews)

    def check_options(self, request: Request) -> None:
        """Report the options that the model ignores, if that was not known before it was downloaded.

        Raises:
            SettingError: it refuses one, or ignores one and the options are ``strict``.
        """
        from h2gen.settings.model_options import check_options, check_strict, ignored_options

        check_options(request.settings, request.checkpoint)
        ignored = [each.text for each in ignored_options(request.settings, request.checkpoint)]
        if self.options.strict:
            check_strict(ignored)
        for text in ignored:
            if text not in request.notices:
                self._observer.remark(text)

    def differences(self, found: Metadata, settings: Settings) -> Iterator[str]:
        """How this model differs from what a picture was made with, one line each; see ``output.replay``."""
        from h2gen.output.metadata import origin
        from h2gen.output.replay import differences

        return differences(found, origin(self.session, self.session.content_hash()), settings)

    def _make(self, settings: Sequence[Settings], tiled: bool, finished: list[Result]) -> str | None:
        """Add each picture to ``finished`` once it is.

        Returns:
            What kept their trace file from being complete.
        """
        from h2gen.output.trace_file import TraceFile

        trace = self.options.trace
        header = {**settings[0].to_json(), **settings[0].asked, **self.facts}
        file = None if trace is None else TraceFile(trace, header, self.options.overwrite)
        size = settings[0].width, settings[0].height

        def attempt(tiled: bool) -> None:
            left = settings[len(finished) :]
            with self._observer.making(self, left) as on_step, self._previewed():
                self.session.run_together(
                    left,
                    on_step=_both(on_step, file),
                    tiled=tiled,
                    on_smaller_batch=on_smaller_batch,
                    on_result=finished.append,
                )

        def on_smaller_batch(count: int) -> None:
            at_once = f"one {settings[0].noun}" if count == 1 else f"{count} {settings[0].noun}s"
            self._observer.relieved(f"Out of memory on {self.session.device}; making {at_once} at a time.")

        def on_relief(relief: Relief) -> None:
            if file is not None:
                file.restart()
            self._observer.relieved(str(relief))

        summary = None
        try:
            with self._observer.interruptible(self):
                with_relief(self.session, size, attempt, tiled=tiled, on_relief=on_relief)
            summary = finished[0].trace.summary if finished[0].trace.steps else None
        finally:
            if file is not None:
                file.close(summary)
        return None if file is None else file.error


def _both(on_step: StepCallback | None, file: TraceFile | None) -> StepCallback | None:
    """One callback for the observer and the trace file; None if there is neither."""
    if file is None or on_step is None:
        return on_step if file is None else file.on_step

    def both(record: StepRecord) -> None:
        on_step(record)
        file.on_step(record)

    return both
