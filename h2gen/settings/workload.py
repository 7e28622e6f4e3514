"""What a picture takes of memory besides the model's weights: pixels, tokens and what the cache keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

from h2gen.cache.config import CacheConfig
from h2gen.cache.most_kept import most_kept
from h2gen.errors import ModelError
from h2gen.models.catalogue import Checkpoint
from h2gen.models.files import tensors_of, weight_files
from h2gen.models.footprint import Work
from h2gen.models.redux import parts_of_redux
from h2gen.settings import presets
from h2gen.settings.values import Settings
from h2gen.settings.video import latent_frames

_CHANNELS = 128
"""Of a velocity's tokens, in the families at most."""
_REDUX_TOKENS = 729
"""Tokens of text that Redux reads from a picture."""


def work_of(
    settings: Settings, checkpoint: Checkpoint, pictures: int = 1, value: int = 2, *, preview_model: Path | None = None
) -> Work:
    """What making pictures takes besides the weights.

    Args:
        settings: of each picture.
        checkpoint: of the model.
        pictures: in a batch.
        value: bytes of a value in the model's dtype.
        preview_model: the folder of a tiny autoencoder, if one makes previews.
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
    redux = [part for file in settings.redux_model for part in parts_of_redux(Path(str(file.path)))]
    return replace(
        work,
        beside=_weights(Path(str(file.path)) for file in settings.controlnet),
        encoding=_weights(redux if settings.redux else ()),
        always=_weights(() if preview_model is None else (preview_model,)),
        cache_memory=settings.cache.cache_memory,
    )


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
    pixels = width * height * max(1, frames)
    return Work(pixels, pictures, tokens + text, kept.tokens, kept.values, value, host_tokens=kept.host_tokens)


def _weights(places: Iterable[Path]) -> int:
    """The number of weights in files or folders; of those that are not on this machine, 0."""
    total = 0
    for place in places:
        try:
            files = [place] if place.is_file() else weight_files(place)
            total += sum(prod(each.shape) for file in files for each in tensors_of(file).tensors.values())
        except (ModelError, OSError):  # loading it reports what is wrong
            continue
    return total
