"""What a picture takes of memory besides the model's weights: pixels, tokens and what the cache keeps."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from h2gen.cache.config import CacheConfig
from h2gen.cache.most_kept import most_kept
from h2gen.models.catalogue import Checkpoint
from h2gen.models.files import WEIGHTS
from h2gen.models.footprint import Work
from h2gen.settings import presets
from h2gen.settings.inputs import InputFile
from h2gen.settings.values import Settings
from h2gen.settings.video import latent_frames

_CHANNELS = 128
"""Of a velocity's tokens, in the families at most."""
_REDUX_TOKENS = 729
"""Tokens of text that Redux reads from a picture."""


def work_of(settings: Settings, checkpoint: Checkpoint, pictures: int = 1, value: int = 2) -> Work:
    """What making pictures takes besides the weights.

    Args:
        settings: of each picture.
        checkpoint: of the model.
        pictures: in a batch.
        value: bytes of a value in the model's dtype.
    """
    references = sum(file.scale is None for file in settings.image)
    work = _work(
        checkpoint,
        (settings.width, settings.height),
        settings.max_sequence_length + _REDUX_TOKENS * len(settings.redux),
        settings.cache,
        2 if settings.cfg > 1 else 1,
        (1 + references, pictures, value),
        settings.frames or 0,
    )
    return replace(work, beside=sum(map(_size_on_disk, settings.controlnet)))


def default_work(checkpoint: Checkpoint, value: int = 2) -> Work:
    """What a picture takes with the model's own defaults and the default preset."""
    defaults, cache = checkpoint.defaults, presets.load_preset(presets.DEFAULT).config
    size, passes = (defaults.width, defaults.height), 2 if defaults.cfg > 1 else 1
    return _work(checkpoint, size, defaults.max_sequence_length, cache, passes, (1, 1, value), defaults.frames)


def _work(
    checkpoint: Checkpoint,
    size: tuple[int, int],
    text: int,
    cache: CacheConfig,
    passes: int,
    counts: tuple[int, int, int],
    frames: int,
) -> Work:
    (width, height), (images, pictures, value) = size, counts
    multiple = checkpoint.defaults.size_multiple
    tokens = images * latent_frames(frames, checkpoint) * -(-width // multiple) * -(-height // multiple)
    kept = most_kept(cache, tokens, text, _CHANNELS, passes)
    return Work(width * height * max(1, frames), pictures, tokens + text, *kept, value)


def _size_on_disk(file: InputFile) -> int:
    """Bytes of the weights of a ControlNet; 0 if they are not on this machine."""
    place = Path(str(file.path))
    try:
        if os.path.isfile(place):
            return place.stat().st_size
        return sum(each.stat().st_size for each in place.glob("*") if each.suffix.lower() in WEIGHTS)
    except OSError:
        return 0
