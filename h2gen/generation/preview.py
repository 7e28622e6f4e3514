"""Previews: the picture as a step expects it to become, while it is made.

A flow-matching model's velocity ``v`` at noise level ``sigma`` points from the picture to the noise, so the picture
that a step expects is ``x - sigma * v``, of its latents ``x``. Both pass through the scheduler's ``step`` in every
pipeline, guided, forecast by the cache or not, so that is where they are read. The small picture is copied from the
device while it computes the next step, and handed on when it has arrived: on CUDA nothing waits for the device.
An error in a preview never costs the picture.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from h2gen.families import family_of
from h2gen.generation.painters import TinyPainter, linear_painter
from h2gen.wording import printable

if TYPE_CHECKING:
    from h2gen.generation.session import Session
    from h2gen.settings.values import Settings

PAUSE = 0.2
"""The least number of seconds between sparing previews."""
SHARE = 0.01
"""The share of the time that sparing previews may take."""


@dataclass(frozen=True)
class Preview:
    """The first picture of a batch, or the first frame of a video, as a step expects it to become.

    Args:
        image: small, in RGB.
        step: from 1.
        steps: of the picture.
    """

    image: Image.Image = field(repr=False)
    step: int
    steps: int


PreviewObserver = Callable[[Preview], None]


@dataclass(frozen=True)
class Previews:
    """Which previews are made.

    Args:
        on_preview: is called with each, in order, during a later step; with the last one after the picture is decoded.
        every: only at every N-th step, and at the last.
        sparing: at most five a second, and fewer if they would take more than 1 % of the time.
        painter: a tiny autoencoder; by default the linear map of the model's own autoencoder.
    """

    on_preview: PreviewObserver
    every: int = 1
    sparing: bool = False
    painter: TinyPainter | None = None


@contextmanager
def previewed(session: Session, previews: Previews) -> Iterator[None]:
    """Let a session make previews of its pictures inside the context. Other threads' pictures wait."""
    with session._lock:
        session.previewing, before = partial(previewing, previews), session.previewing
        try:
            yield
        finally:
            session.previewing = before


@contextmanager
def previewing(previews: Previews, pipe: Any, settings: Settings) -> Iterator[None]:
    """Make previews of what a pipeline makes inside the context, with the scheduler that it has."""
    scheduler, watch = pipe.scheduler, _Watch(pipe, previews, settings)

    @wraps(scheduler.step)
    def step(*args: Any, **kwargs: Any) -> Any:
        return watch.step(*args, **kwargs)

    scheduler.step = step
    try:
        yield
        watch.finish()
    finally:
        del scheduler.step


class _Waiting(NamedTuple):
    """A preview on its way from the device."""

    pixels: torch.Tensor
    arrived: Any
    """The event of its arrival; None if it has arrived."""
    step: int


class _Watch:
    """Wraps a scheduler's ``step``."""

    def __init__(self, pipe: Any, previews: Previews, settings: Settings) -> None:
        self._pipe, self._previews, self._noun = pipe, previews, settings.noun
        self._scheduler, self._step = pipe.scheduler, pipe.scheduler.step
        token = 2 * getattr(pipe, "vae_scale_factor", 1)
        self._grid = settings.height // token, settings.width // token
        self._waiting: deque[_Waiting] = deque()
        self._first: int | None = None
        """The first step's index in the schedule; image-to-image starts in the middle of it."""
        self._steps = self._shown = 0
        self._next = 0.0
        self._failed = False
        if previews.painter is None:
            with self._harmless():  # before the first step, which this would delay
                linear_painter(pipe.vae, torch.device(pipe._execution_device))

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = self._step(model_output, timestep, sample, *args, **kwargs)
        if not self._failed:
            started = time.perf_counter()
            begun = False
            with self._harmless():
                begun = self._begin(model_output, sample, started)
            if (self._hand_on() or begun) and self._previews.sparing:
                # The first one is slow, as everything is the first time; it says nothing about the next.
                cost = (time.perf_counter() - started) / SHARE if self._next else 0.0
                self._next = started + max(PAUSE, cost)
        return result

    def finish(self) -> None:
        """Hand on the previews that are left."""
        self._hand_on(wait=True)

    @torch.no_grad()
    def _begin(self, velocity: torch.Tensor, sample: torch.Tensor, now: float) -> bool:
        """Begin the preview of the step that the scheduler has just made, if there is to be one."""
        index, order, passes = self._scheduler.step_index - 1, self._scheduler.order, len(self._scheduler.timesteps)
        self._first = index if self._first is None else self._first
        self._steps = -(-(passes - self._first) // order)
        step, last = (index - self._first) // order + 1, index + 1 == passes
        due = step > self._shown and step % self._previews.every == 0 and now >= self._next
        if not (last or due):
            return False
        self._shown = step
        sigma = self._scheduler.sigmas[index]
        family = family_of(self._pipe.transformer)
        first, towards = (family.first_frame(latents[:1]).float() for latents in (sample, velocity))
        expected = first - sigma * towards
        pixels = self._paint(expected)
        if pixels.device.type != "cuda":
            self._waiting.append(_Waiting(pixels.cpu(), None, step))
            return True
        copy = pixels.to("cpu", non_blocking=True)
        event: Any = torch.cuda.Event
        arrived = event()
        arrived.record(torch.cuda.current_stream(pixels.device))
        self._waiting.append(_Waiting(copy, arrived, step))
        return True

    def _paint(self, tokens: torch.Tensor) -> torch.Tensor:
        own, painter = self._pipe.vae, self._previews.painter
        decoder = own if painter is None else painter.autoencoder
        latents = family_of(self._pipe.transformer).decoder_latents(tokens, self._grid, own, decoder)
        return linear_painter(own, tokens.device)(latents) if painter is None else painter(latents)

    def _hand_on(self, wait: bool = False) -> bool:
        """Hand on the previews that have arrived; with ``wait``, all."""
        shown = False
        while self._waiting and (self._waiting[0].arrived is None or wait or self._waiting[0].arrived.query()):
            pixels, arrived, step = self._waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            self._previews.on_preview(Preview(Image.fromarray(pixels.numpy()), step, self._steps))
            shown = True
        return shown

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the picture is worth more than its preview
            self._failed = True
            reason = printable(str(error).partition("\n")[0])[:150]
            text = f"There are no previews ({reason}); the {self._noun} is made all the same."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
