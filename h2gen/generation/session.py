"""A loaded model that makes pictures."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from h2gen.cache import CacheConfig, StepRecord, Trace, h2_cache
from h2gen.errors import BadPicture, OutOfMemory, SettingError
from h2gen.generation.solvers import solving
from h2gen.generation.text import EncodedPrompts
from h2gen.models import Checkpoint, is_out_of_memory, resolve, set_tiling
from h2gen.models.choices import STRONGER
from h2gen.models.load import load_placed
from h2gen.settings.values import OFF, Settings, random_seed

StepObserver = Callable[[StepRecord], None]


@dataclass(frozen=True)
class Result:
    """A picture and how it came about.

    ``settings`` are those that made it. ``trace`` is None where nobody watched a run without a cache: then nothing of
    ours ran. ``seconds`` is the whole call, from text encoding to decoded picture. ``uncached`` says that the picture
    came out NaN with the cache and was made once more without it: settings and seconds are then those of the second
    run, and there is no trace. ``tiled`` says that it was decoded in tiles because that was asked for. ``together`` is
    how many pictures were made at once; ``seconds`` are then this one's part of them all.
    """

    image: Image.Image
    settings: Settings
    seconds: float
    trace: Trace | None
    uncached: bool = False
    tiled: bool = False
    together: int = 1


def load(
    model: str = "tiny",
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offload: str = "none",
) -> Session:
    """Load a model by alias, hub id, folder or file.

    Args:
        model: ``tiny``, ``dev``, ``schnell``, ``krea``, ``klein-4b``, ``flux2-dev``, a hub id, a diffusers folder, or
            a ``.safetensors`` or ``.gguf`` file of a transformer alone.
        base: the model that supplies the rest of a single file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...
        dtype: ``auto`` (bf16 on a GPU that has it, fp32 on the CPU), ``bf16``, ``fp16``, ``fp32``.
        offload: ``none``, ``model``, ``group``, ``sequential`` or ``auto``.

    Raises:
        ModelError: the checkpoint is unknown, missing, gated, damaged or no Flux.
        DeviceError: the device is not there, or cannot do what is asked of it.

    >>> session = h2gen.load("tiny")  # doctest: +SKIP
    >>> session.generate("a cat", seed=7, cache=h2gen.CacheConfig(tau1=0.08, tau2=0.2)).image  # doctest: +SKIP
    """
    return open_session(resolve(model, base), device=device, dtype=dtype, offload=offload)


def open_session(
    checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", offload: str = "none"
) -> Session:
    """Load a checkpoint that ``resolve`` found; see ``load``."""
    try:
        pipe, offload = load_placed(checkpoint, device=device, dtype=dtype, offload=offload)
    except Exception as error:
        if is_out_of_memory(error):
            # Not ``_relief``: the size does not matter yet, and the device may still be called "auto".
            raise OutOfMemory(
                f"Out of memory while loading {checkpoint.name!r}; use --offload auto on a GPU, a smaller model, or a "
                ".gguf file of it."
            ) from error
        raise
    return Session(pipe, checkpoint, offload)


class Session:
    """A loaded model. One session makes any number of pictures, one after the other or some at once.

    ``offload`` is the mode in use.
    """

    def __init__(self, pipe: Any, checkpoint: Checkpoint, offload: str = "none") -> None:
        self.pipe = pipe
        self.checkpoint = checkpoint
        self.offload = offload
        self._encoded = EncodedPrompts()
        self._interrupted = self._watched = False
        self._most: dict[tuple[int, int], int] = {}
        """Pictures of a size that memory suffices for together, where it did not for more."""

    @property
    def device(self) -> torch.device:
        """Where the denoising runs."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        dtype: torch.dtype = self.pipe.transformer.dtype
        return dtype

    def settings(self, prompt: str, cache: CacheConfig | None = None, **overrides: Any) -> Settings:
        """Settings for this model: its defaults, and over them whatever is given and not None.

        Raises:
            SettingError: a value cannot be used, or not with this model.
        """
        defaults = self.checkpoint.defaults
        given = {name: value for name, value in overrides.items() if value is not None}
        values = {
            "seed": random_seed(),
            "width": defaults.width,
            "height": defaults.height,
            "steps": defaults.steps,
            "guidance": defaults.guidance,
            "cfg": defaults.cfg,
            "max_sequence_length": defaults.max_sequence_length,
        }
        return Settings(prompt=prompt, cache=cache or OFF, **{**values, **given})

    def generate(
        self,
        prompt: str,
        *,
        cache: CacheConfig | None = None,
        on_step: StepObserver | None = None,
        **overrides: Any,
    ) -> Result:
        """Make a picture.

        Args:
            prompt: what to paint.
            cache: thresholds and guards; None runs plain diffusers.
            on_step: is called with each step's record.
            overrides: fields of ``Settings``, over the model's defaults; the seed is random where none is given.

        Raises:
            SettingError: a setting cannot be used.
            OutOfMemory: the device's memory does not suffice.
            BadPicture: the picture holds NaN, without the cache too.
            KeyboardInterrupt: ``interrupt`` was called.
        """
        return self.run(self.settings(prompt, cache, **overrides), on_step=on_step)

    def run(self, settings: Settings, *, on_step: StepObserver | None = None, tiled: bool = False) -> Result:
        """Make the picture that the settings describe; see ``generate``.

        ``tiled`` has it decoded in tiles whatever its size, which needs less memory and changes it a little.
        """
        return self.run_together([settings], on_step=on_step, tiled=tiled)[0]

    def run_together(
        self, settings: Sequence[Settings], *, on_step: StepObserver | None = None, tiled: bool = False
    ) -> list[Result]:
        """Make several pictures in one batch, each as ``run`` makes it alone but for rounding.

        The cache decides for each of them. Where memory runs out the batch is halved, and those of its size that
        come later are made no larger; steps that ``on_step`` has heard of then come again.

        Args:
            settings: of the pictures; they may differ in prompt and seed.
            on_step: is called with each picture's steps; their ``picture`` counts these settings from 0.

        Raises:
            SettingError: they differ in something else.
            H2GenError: as ``run``, for all of them.
        """
        if not all(settings[0].goes_with(each) for each in settings):
            raise SettingError("Pictures that are made together can differ in prompt and seed alone.")
        size = settings[0].width, settings[0].height
        results: list[Result] = []
        try:
            while len(results) < len(settings):
                first = len(results)
                part = settings[first : first + self._most.get(size, len(settings))]
                heard = None if on_step is None else _counted_from(first, on_step)
                if (made := self._run(part, heard, tiled)) is not None:
                    results += made
                else:
                    self._most[size] = (len(part) + 1) // 2
                    gc.collect()
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
        finally:
            self._interrupted = False
        return results

    def _run(self, settings: Sequence[Settings], on_step: StepObserver | None, tiled: bool) -> list[Result] | None:
        """Make a batch; None where memory does not suffice for so many."""
        try:
            pixels, trace, seconds = self._denoise(settings, on_step, tiled)
        except OutOfMemory:
            if len(settings) == 1:
                raise
            return None
        traces = [trace] * len(settings) if trace is None or len(settings) == 1 else trace.of_each_picture()
        count = len(settings)
        return [
            self._finished(each, picture, tiled, trace=its_trace, seconds=seconds / count, together=count)
            for each, picture, its_trace in zip(settings, pixels, traces, strict=True)
        ]

    def _finished(self, settings: Settings, pixels: np.ndarray[Any, Any], tiled: bool, **facts: Any) -> Result:
        """A picture from its pixels, ``(H, W, 3)``; one that is NaN is made once more, alone and without the cache."""
        uncached = not np.isfinite(pixels).all() and settings.cache.enabled
        if uncached:
            settings = replace(settings, cache=OFF)
            (pixels,), trace, seconds = self._denoise([settings], None, tiled)
            facts = {"trace": trace, "seconds": seconds}
        if not np.isfinite(pixels).all():
            both = ", with the cache and without it" if uncached else ""
            raise BadPicture(f"The picture came out as NaN{both}; nothing was saved. Try --dtype bf16 or --dtype fp32.")
        (image,) = self.pipe.image_processor.numpy_to_pil(pixels[None])
        return Result(image, settings, uncached=uncached, tiled=tiled, **facts)

    def encode(self, settings: Settings) -> None:
        """Encode a picture's text beforehand, so that its ``run`` finds it done."""
        self._arguments([settings])

    def interrupt(self) -> None:
        """Stop after the step in hand: ``run`` raises KeyboardInterrupt. May be called from a signal handler.

        Where nothing runs, it is the next run that stops.
        """
        self._interrupted = True
        if not self._watched:
            self.pipe._interrupt = True  # the pipeline's own switch: it passes by the steps that are left

    def forget_interrupt(self) -> None:
        """Let the next run go on although ``interrupt`` was called and nothing ran."""
        self._interrupted = False

    def _arguments(self, together: Sequence[Settings]) -> dict[str, Any]:
        """The pipeline's own arguments; which it has tells what the model can do."""
        settings = together[0]
        kind = type(self.pipe).__name__
        arguments: dict[str, Any] = {
            "width": settings.width,
            "height": settings.height,
            "num_inference_steps": settings.steps,
            "max_sequence_length": settings.max_sequence_length,
            "output_type": "np",
        }
        if kind == "Flux2KleinPipeline":  # its guidance_scale is true guidance
            arguments["guidance_scale"] = settings.cfg
            if settings.cfg > 1 and self.pipe.config.is_distilled:
                raise SettingError(
                    f"cfg is {settings.cfg:g}, but this model is distilled and takes no guidance: use 1."
                )
        elif kind == "Flux2Pipeline":
            arguments["guidance_scale"] = settings.guidance
            if settings.cfg > 1:
                raise SettingError(f"cfg is {settings.cfg:g}, but FLUX.2-dev has no true guidance: use --guidance.")
        else:
            arguments["guidance_scale"] = settings.guidance
            if settings.cfg > 1:
                arguments["true_cfg_scale"] = settings.cfg
        length = settings.max_sequence_length
        arguments.update(self._texts([each.prompt for each in together], length))
        if settings.cfg > 1:
            negative = self._texts([each.negative for each in together], length)
            arguments.update({f"negative_{name}": tensor for name, tensor in negative.items()})
        return arguments

    def _texts(self, prompts: Sequence[str], length: int) -> dict[str, torch.Tensor]:
        """What the pipeline takes for prompts: their embeddings, a row each."""
        encoded = [self._encoded.of(self.pipe, prompt, length) for prompt in prompts]
        if len(encoded) == 1:
            return encoded[0]
        return {name: torch.cat([each[name] for each in encoded]) for name in encoded[0]}

    def _denoise(
        self, together: Sequence[Settings], on_step: StepObserver | None, tiled: bool
    ) -> tuple[np.ndarray[Any, Any], Trace | None, float]:
        """One call of the pipeline: float pixels, ``(B, H, W, 3)`` in 0 to 1, what the cache did, and seconds."""
        settings = together[0]
        set_tiling(self.pipe, settings.width, settings.height, always=tiled)
        self._watched = settings.cache.enabled or on_step is not None
        cache = h2_cache(self.pipe, settings.cache, on_step=on_step) if self._watched else contextlib.nullcontext(None)
        # On the CPU, so that a seed means the same noise on every device.
        generators = [torch.Generator("cpu").manual_seed(each.seed) for each in together]
        generator = generators if len(generators) > 1 else generators[0]
        started = time.perf_counter()
        try:
            arguments = self._arguments(together)
            self._heed()  # while the text was encoded: the pipeline forgets it when it begins
            if self._watched:
                arguments["callback_on_step_end"] = self._stop_if_interrupted
            with solving(self.pipe, settings.solver), cache as trace:
                pixels = self.pipe(**arguments, generator=generator).images
        except Exception as error:
            if is_out_of_memory(error):
                size = f"{settings.width}x{settings.height}"
                relief = _relief(self.device.type, self.offload)
                raise OutOfMemory(f"Out of memory on {self.device} at {size}; {relief}.") from error
            raise
        if not self._watched:
            self._heed()
        return np.asarray(pixels), trace, time.perf_counter() - started

    def _stop_if_interrupted(self, _pipe: Any, _step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._heed()
        return kwargs

    def _heed(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt


def _counted_from(first: int, on_step: StepObserver) -> StepObserver:
    return lambda record: on_step(replace(record, picture=first + record.picture))


def _relief(device: str, offload: str) -> str:
    """What would help when memory runs out."""
    stronger = STRONGER.get(offload)
    if device == "cpu" or stronger is None:
        return "use a smaller --size, a smaller model, or a .gguf file of it"
    return f"use --offload {stronger}, or a smaller --size"
