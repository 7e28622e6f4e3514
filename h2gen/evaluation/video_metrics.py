"""Metrics of videos: those of pictures frame by frame, the worst frame's, and how much the difference flickers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from PIL import Image

from h2gen.errors import SettingError
from h2gen.evaluation.metrics import MetricInfo, Metrics
from h2gen.evaluation.metrics.psnr_ssim import ssim
from h2gen.evaluation.results import score
from h2gen.evaluation.videos import Shown, Video
from h2gen.settings.values import Settings

OF_WORST_FRAME = "-frame"
"""After the name of a metric: its value in the worst frame."""
_WORST = ("psnr", "ssim")
_FLICKER = MetricInfo("flicker", "Flicker", "", False, True, "h2gen")
_AT_ONCE = 8
"""Frames that are subtracted from one another at once: long videos are large."""


class VideoMetrics(Metrics):
    """The metrics of pictures, for videos: each is its mean over all frames.

    PSNR and SSIM are also reported for the worst frame, and with them ``flicker``.

    Args:
        metrics: those of pictures.
    """

    def __init__(self, metrics: Metrics) -> None:
        of_frames = [
            replace(info, name=info.name + OF_WORST_FRAME, title=f"Worst-frame {info.title}")
            for info in metrics.infos
            if info.name in _WORST
        ]
        # PSNR and SSIM first, then their worst frames and flicker: a narrow table shows only the first two.
        first = [info for info in metrics.infos if info.name in _WORST]
        others = [info for info in metrics.infos if info.name not in _WORST]
        more = [*of_frames, *([_FLICKER] if of_frames else [])]
        super().__init__([*first, *more, *others], metrics.notices, metrics._fidelity, metrics._quality)

    def measure(self, image: Shown, reference: Shown | None, prompt: str) -> dict[str, float]:
        """As ``Metrics.measure``, of videos of the same size and number of frames.

        Raises:
            SettingError: their sizes or numbers of frames differ, or they are too small for SSIM.
            ModelError: the weights cannot be loaded.
        """
        assert isinstance(image, Video) and (reference is None or isinstance(reference, Video))
        values = {name: [measure(frame, prompt) for frame in image.pictures] for name, measure in self._quality.items()}
        more: dict[str, float] = {}
        if reference is not None:
            close = {
                name: [measure(*pair) for pair in _pairs(image, reference)] for name, measure in self._fidelity.items()
            }
            values = {**close, **values}
            more = {name + OF_WORST_FRAME: min(close[name]) for name in _WORST if name in close}
            if _FLICKER in self.infos:
                more[_FLICKER.name] = flicker(image, reference)
        return {**_means(values, self.infos), **more}


def suited(metrics: Metrics, settings: Settings) -> Metrics:
    """The metrics for what these settings make: as they are for pictures, over all frames for videos."""
    return metrics if settings.frames is None else VideoMetrics(metrics)


def flicker(video: Video, reference: Video) -> float:
    """How much the difference of two videos changes from one frame to the next.

    The mean absolute change over all pixels, in 8-bit levels; 0 if the difference never changes, and for one frame. A
    video that is wrong in the same way all the time does not flicker.
    """
    total = 0.0
    for start in range(0, len(video.frames) - 1, _AT_ONCE):
        some = slice(start, start + _AT_ONCE + 1)
        apart = video.frames[some].astype(np.int16) - reference.frames[some]
        total += float(np.abs(np.diff(apart, axis=0)).sum(dtype=np.float64))
    return total / max(1, video.frames[1:].size)


def mean_ssim(image: Shown, reference: Shown) -> float:
    """SSIM of two pictures, or its mean over the frames of two videos.

    Raises:
        SettingError: as ``ssim``.
    """
    if isinstance(image, Video) and isinstance(reference, Video):
        return statistics.fmean(ssim(*pair) for pair in _pairs(image, reference))
    assert not isinstance(image, Video) and not isinstance(reference, Video)
    return ssim(image, reference)


def _pairs(image: Video, reference: Video) -> Iterator[tuple[Image.Image, Image.Image]]:
    if len(image.frames) != len(reference.frames):
        raise SettingError(
            f"A video of {len(image.frames)} frames cannot be compared with one of {len(reference.frames)}."
        )
    return zip(image.pictures, reference.pictures, strict=True)


def _means(values: Mapping[str, list[float]], infos: tuple[MetricInfo, ...]) -> dict[str, float]:
    """Over the frames; an infinite PSNR of some frames counts as in a mean over pictures."""
    rising = {info.name: info.higher_is_better for info in infos}
    return {name: score(each, rising[name]).mean for name, each in values.items()}
