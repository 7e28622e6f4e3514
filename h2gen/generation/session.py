"""A loaded model that makes pictures: one at a time, or several in one batch."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from h2gen.cache import StepRecord, Trace, h2_cache
from h2gen.errors import BadPicture, OutOfMemory, RunError, SettingError
from h2gen.generation.arguments import SAVING, CacheChoice, choose, saving_of
from h2gen.generation.kernels import kernels
from h2gen.generation.preview_options import watched
from h2gen.generation.progress import counted_from, progress_bar
from h2gen.generation.relief import free_memory, let_go, load_or_advise, out_of_memory
from h2gen.generation.result import Result, painted, pixels_of
from h2gen.generation.solvers import solving
from h2gen.generation.tasks import TaskPipelines
from h2gen.generation.text import EncodedPrompts, of_one_length, unread
from h2gen.models import Checkpoint, is_out_of_memory, set_tiling
from h2gen.models.adapters import Adapters
from h2gen.models.content_hash import Identity
from h2gen.models.footprint import Work
from h2gen.models.load_options import DEFAULT, LoadOptions
from h2gen.models.peak_memory import begin_peak, peak_memory
from h2gen.models.translate_errors import translated
from h2gen.output.metadata import origin
from h2gen.settings.values import OFF, Settings

if TYPE_CHECKING:
    from h2gen.generation.preview import PreviewObserver

StepObserver = Callable[[StepRecord], None]


def open_session(
    checkpoint: Checkpoint,
    options: LoadOptions = DEFAULT,
    work: Work | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Session:
    """Load a checkpoint that ``resolve`` found, for pictures of this ``work``; see ``h2gen.load``.

    ``say`` is called with what the user should know: how the model is loaded so that it fits into memory.
    """
    pipe, used = load_or_advise(checkpoint, options, work, say)
    return Session(pipe, checkpoint, used)


class Session:
    """A loaded model. It makes any number of pictures, one at a time or in batches; other threads wait.

    Args:
        pipe: the loaded pipeline.
        checkpoint: what it was loaded from.
        options: how it was loaded.
    """

    def __init__(self, pipe: Any, checkpoint: Checkpoint, options: LoadOptions = DEFAULT) -> None:
        self._pipe = pipe
        self.checkpoint = checkpoint
        self.options = options
        self._lock = threading.RLock()
        self._encoded, self._adapters = EncodedPrompts(), Adapters()
        self._interrupted = self._observed = False
        self._tasks = TaskPipelines(checkpoint.name)
        self._running: Any = None
        self.previewing: Callable[[Any, Settings], AbstractContextManager[None]] = lambda *_: contextlib.nullcontext()
        """Around each call of a pipeline; see ``preview.previewed``."""
        self._most: dict[tuple[int, int], int] = {}
        """The largest batch of a size (pixels) that fits into memory, if a larger one did not."""
        self.tiled_sizes: set[tuple[int, int]] = set()
        """Sizes that ``with_relief`` decodes in tiles, because memory was too small otherwise."""

    @property
    def pipe(self) -> Any:
        """The loaded pipeline.

        Raises:
            RunError: loading it again, after memory ran out, has failed.
        """
        if self._pipe is None:
            raise RunError(f"{self.checkpoint.name!r} is no longer loaded, because loading it again failed; restart.")
        return self._pipe

    @property
    def is_loaded(self) -> bool:
        """Whether it can make pictures: not after loading it again has failed."""
        return self._pipe is not None

    @property
    def offload(self) -> str:
        """The offloading in use, never "auto"."""
        return self.options.offload

    @property
    def device(self) -> torch.device:
        """Where denoising runs."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The transformer's dtype."""
        dtype: torch.dtype = self.pipe.transformer.dtype
        return dtype

    def pipeline(self, settings: Settings) -> Any:
        """The pipeline that makes such a picture; see ``TaskPipelines.of``. Waits for other threads."""
        with self._lock, self._working(settings):
            return self._tasks.of(self.pipe, settings, self.offload)

    @cached_property
    def identity(self) -> Identity:
        """Computes the checkpoint's content hash, from the first use on, in a thread."""
        return Identity(self.checkpoint)

    def content_hash(self) -> str:
        """The identity of the checkpoint; waits until its files have been read.

        Raises:
            ModelError: they are missing or damaged.
        """
        with translated(self.checkpoint):
            return self.identity.result()

    def settings(self, prompt: str, cache: CacheChoice = "default", **given: Any) -> Settings:
        """The settings of a picture from the arguments of ``generate``.

        Raises:
            ArgumentError: there is no such argument.
            UsageError: a value cannot be used, or not with this model.
        """
        return choose("settings", self.checkpoint, prompt, cache, given).settings

    def generate(
        self,
        prompt: str = "",
        *,
        cache: CacheChoice = "default",
        on_step: StepObserver | None = None,
        on_preview: PreviewObserver | None = None,
        progress: bool | None = None,
        **given: Any,
    ) -> Result:
        """Make a picture.

        The arguments are those of the command line, with its defaults; None means not given. Those about the picture:
        ``seed``, ``size`` (or ``width`` and ``height``), ``steps``, ``solver``, ``guidance``, ``cfg``, ``negative``,
        ``max_sequence_length``. About the cache: ``preset``, ``no_cache``, each field of ``CacheConfig``; or
        ``speedup`` or ``fidelity``, with ``policy`` and ``nearest``. With ``strict`` an option that the model ignores
        is an error. About the file: ``out``, with ``format``, ``no_metadata``, ``sidecar`` and ``overwrite``.

        Args:
            prompt: what to paint. It may be left out with ``redux``, which is then read in its place.
            cache: all settings of the cache at once, instead of a preset; None runs plain diffusers.
            on_step: is called with each step's record.
            on_preview: is called with each step's ``Preview``: the picture as that step expects it to become.
            progress: show a progress bar; by default in a terminal and in a notebook.
            given: arguments by name. With ``out``, a folder or a file, the picture is saved as ``Result.save`` does.

        Raises:
            ArgumentError: there is no such argument.
            UsageError: a value cannot be used, or not with this model.
            OutOfMemory: the device's memory does not suffice.
            BadPicture: the picture contains NaN, even without the cache.
            KeyboardInterrupt: ``interrupt`` was called.

        >>> session.generate("a cat", seed=7, size="16:9", preset="fast", out="pictures").path  # doctest: +SKIP
        """
        chosen = choose("generate", self.checkpoint, prompt, cache, given, SAVING)
        saving = saving_of(given, chosen.settings)
        if saving is not None and (saving.metadata or saving.sidecar):
            self.content_hash()  # a damaged checkpoint must not cost a finished picture
        for notice in chosen.notices:
            warnings.warn(notice, stacklevel=2)
        with progress_bar(self.pipeline(chosen.settings), progress), watched(self, on_preview):
            result = replace(self.run(chosen.settings, on_step=on_step), preset=chosen.preset)
        return result if saving is None else result.saved(**vars(saving))

    def run(self, settings: Settings, *, on_step: StepObserver | None = None, tiled: bool = False) -> Result:
        """Make the picture that the settings describe; see ``generate``.

        ``tiled`` decodes it in tiles whatever its size, which needs less memory and changes it a little.
        """
        self._encoded.warn(self.pipe, settings)
        return self.run_together([settings], on_step=on_step, tiled=tiled)[0]

    def run_together(
        self,
        settings: Sequence[Settings],
        *,
        on_step: StepObserver | None = None,
        tiled: bool = False,
        on_smaller_batch: Callable[[int], None] = lambda _size: None,
        on_result: Callable[[Result], None] = lambda _result: None,
    ) -> list[Result]:
        """Make several pictures in one batch, each as ``run`` would make it, except for rounding.

        The cache decides for each of them separately. When memory runs out the batch is halved, and later batches of
        the same image size are not made larger; ``on_step`` then gets the steps of the failed batch again.

        Args:
            settings: one per picture; they may differ in prompt and seed.
            on_step: is called with each picture's steps; their ``picture`` is the index into ``settings``.
            tiled: see ``run``.
            on_smaller_batch: is called with the new size of a batch after memory ran out.
            on_result: is called with each picture once it is finished, in their order: a later one may fail.

        Raises:
            SettingError: they differ in something else.
            H2GenError: as ``run``, for all of them.
        """
        if not all(settings[0].goes_with(each) for each in settings):
            raise SettingError("Pictures of one batch may differ only in prompt and seed.")
        size = settings[0].width, settings[0].height
        results: list[Result] = []
        try:
            while len(results) < len(settings):
                first = len(results)
                fitting = settings[first : first + self._most.get(size, len(settings))]
                with self._lock, self._working(settings[0]):
                    begin_peak(self.device)  # before texts are encoded
                    part = of_one_length(self._encoded, self.pipe, fitting, self._adapters.of_text)
                renumbered = None if on_step is None else counted_from(first, on_step)
                if (made := self._run(part, renumbered, tiled)) is not None:
                    for result in made:
                        results.append(result)
                        on_result(result)
                else:
                    self._most[size] = (len(part) + 1) // 2
                    free_memory()
                    on_smaller_batch(self._most[size])
        finally:
            self._interrupted = False
        return results

    def _run(self, settings: Sequence[Settings], on_step: StepObserver | None, tiled: bool) -> Iterator[Result] | None:
        """Make a batch, and finish its pictures one by one; None if there is not enough memory for it."""
        try:
            pixels, trace, seconds = self._denoise(settings, on_step, tiled)
        except OutOfMemory:
            if len(settings) == 1:
                raise
            return None
        traces = [trace] * len(settings) if not trace.steps or len(settings) == 1 else trace.of_each_picture()
        facts = {"seconds": seconds / len(settings), "together": len(settings)}
        pictures = zip(settings, pixels, traces, strict=True)
        return (self._finished(each, picture, tiled, trace=own, **facts) for each, picture, own in pictures)

    def _finished(self, settings: Settings, pixels: np.ndarray[Any, Any], tiled: bool, **facts: Any) -> Result:
        """A picture from ``(H, W, 3)``, or a video from ``(F, H, W, 3)``; of NaN, made again, singly and uncached."""
        nan_with_cache = not np.isfinite(pixels).all() and settings.cache.enabled
        if nan_with_cache:
            settings = replace(settings, cache=OFF)
            (pixels,), trace, seconds = self._denoise([settings], None, tiled)
            facts = {"trace": trace, "seconds": seconds}
        if not np.isfinite(pixels).all():
            both = ", with and without the cache" if nan_with_cache else ""
            what = f"The {settings.noun} came out as NaN{both}; nothing was saved."
            raise BadPicture(f"{what} Try --dtype bf16 or --dtype fp32.")
        return Result(
            settings=settings,
            **painted(pixels),
            origin=origin(self),
            content_hash=self.content_hash,
            nan_with_cache=nan_with_cache,
            tiled=tiled,
            unread=unread(self.pipe, settings),
            peak_memory=peak_memory(self.device),
            **facts,
        )

    def encode(self, settings: Settings) -> None:
        """Encode a picture's text now, so that ``run`` need not.

        Raises:
            OutOfMemory: the device's memory does not suffice.
        """
        with self._lock, self._working(settings):
            self._arguments([settings])

    def relieve(self, offload: str) -> None:
        """Free memory after it ran out, and load the model again if its offloading changes.

        Raises:
            Exception: it cannot be loaded in that way. The session is then as before; if that is impossible too, it
                makes no more pictures. The same goes for an interrupt while it is loaded.
        """
        with self._lock:
            if offload == self.offload:
                free_memory()
                return
            self._pipe = self._running = None  # there is no memory for both
            self._tasks.forget()
            free_memory()
            try:
                self._pipe, self.options = load_or_advise(self.checkpoint, replace(self.options, offload=offload))
            except BaseException as error:
                let_go(error)
                free_memory()
                with contextlib.suppress(Exception):
                    self._pipe, _ = load_or_advise(self.checkpoint, self.options)
                raise

    def interrupt(self) -> None:
        """Stop after the current step: ``run`` raises KeyboardInterrupt. May be called from a signal handler.

        If nothing is running, the next run stops.
        """
        self._interrupted = True
        if not self._observed and self._running is not None:
            self._running._interrupt = True  # the pipeline's own switch: it skips the remaining steps

    def forget_interrupt(self) -> None:
        """Undo an ``interrupt`` that came while nothing was running."""
        self._interrupted = False

    def _arguments(self, together: Sequence[Settings]) -> dict[str, Any]:
        """What the pipeline is called with, apart from its noise."""
        settings = together[0]
        arguments = self._tasks.arguments(self.pipe, together, self.offload)
        length, under = settings.max_sequence_length, self._adapters.of_text
        text = self._encoded.together(self.pipe, [each.prompt for each in together], length, under)
        arguments.update(self._tasks.with_redux(self.pipe, settings, text))
        if settings.cfg > 1:
            negative = self._encoded.together(self.pipe, [each.negative for each in together], length, under)
            arguments.update({f"negative_{name}": tensor for name, tensor in negative.items()})
        return arguments

    def _denoise(
        self, together: Sequence[Settings], on_step: StepObserver | None, tiled: bool
    ) -> tuple[np.ndarray[Any, Any], Trace, float]:
        """Call the pipeline once.

        Returns:
            Float pixels of shape (B, H, W, 3), of videos (B, F, H, W, 3), in 0 to 1, the trace, which is empty if there
            is nothing to watch, and seconds.
        """
        settings = together[0]
        observed = settings.cache.enabled or on_step is not None
        # On the CPU, so that a seed gives the same noise on every device.
        generators = [torch.Generator("cpu").manual_seed(each.seed) for each in together]
        with self._lock, self._working(settings):
            started, self._observed = time.perf_counter(), observed
            self._running = pipe = self._tasks.of(self.pipe, settings, self.offload)
            set_tiling(pipe, settings.width, settings.height * (settings.frames or 1), always=tiled)
            off = contextlib.nullcontext(Trace())
            cache = h2_cache(pipe, settings.running_cache, on_step=on_step) if observed else off
            arguments = self._arguments(together)
            self._raise_if_interrupted()  # during text encoding: the pipeline resets its switch when it starts
            if observed:
                arguments["callback_on_step_end"] = self._stop_if_interrupted
            solver = solving(pipe, settings.solver, settings.shift, generators)
            run_with = kernels(pipe.transformer, settings, self.options)
            with solver, run_with, self.previewing(pipe, settings), cache as trace:
                trace.reference = settings.reference
                made = pipe(**arguments, generator=generators if len(generators) > 1 else generators[0])
            if not observed:
                self._raise_if_interrupted()
            return pixels_of(made), trace, time.perf_counter() - started

    @contextlib.contextmanager
    def _working(self, settings: Settings) -> Iterator[None]:
        """Around work on the device: running out of memory is reported, unless an interrupt came first."""
        pipe = self.pipe
        try:
            self._adapters.use(pipe, settings.lora, self.offload, swap=self.options.compile)
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._raise_if_interrupted()
            raise out_of_memory(self, settings) from error
        finally:
            self._running = None  # it may hold ControlNets that the next picture does not need

    def _stop_if_interrupted(self, _pipe: Any, _step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._raise_if_interrupted()
        return kwargs

    def _raise_if_interrupted(self) -> None:
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
