"""Metrics of videos: the mean over frames, the worst frame, flicker; and videos kept exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from h2gen.errors import SettingError
from h2gen.evaluation.metrics import choose_metrics
from h2gen.evaluation.metrics.psnr_ssim import psnr, ssim
from h2gen.evaluation.video_metrics import flicker, mean_ssim, suited
from h2gen.evaluation.videos import Video, identical, kept_video, webp_video
from h2gen.settings.values import Settings
from tests.output.test_video_file import moving

VIDEO = Settings("a cat", 7, 64, 48, 4, frames=9, fps=8.0)


def noisy(frames: Any, *numbers: int) -> Video:
    """The frames, with noise on some of them."""
    changed = frames.copy()
    for number in numbers:
        noise = np.random.default_rng(number).integers(-20, 20, frames.shape[1:])
        changed[number] = np.clip(changed[number] + noise, 0, 255)
    return Video(changed, 8.0)


def test_each_metric_is_its_mean_over_frames_and_the_worst_frame_is_told() -> None:
    metrics = suited(choose_metrics("psnr,ssim"), VIDEO)
    one, other = noisy(moving(3), 0, 1, 2), Video(moving(3), 8.0)
    found = metrics.measure(one, other, "a cat")
    pairs = list(zip(one.pictures, other.pictures, strict=True))
    of_frames = {"psnr": [psnr(*pair) for pair in pairs], "ssim": [ssim(*pair) for pair in pairs]}
    assert set(found) == {info.name for info in metrics.infos} == {*of_frames, "psnr-frame", "ssim-frame", "flicker"}
    for name, values in of_frames.items():
        assert found[name] == pytest.approx(sum(values) / 3) and found[f"{name}-frame"] == min(values)
    assert mean_ssim(one, other) == pytest.approx(found["ssim"])


def test_the_same_frames_are_identical_and_some_of_them_count_as_in_a_mean_over_pictures() -> None:
    metrics = suited(choose_metrics("psnr,ssim"), VIDEO)
    plain = Video(moving(3), 8.0)
    same = metrics.measure(Video(moving(3), 8.0), plain, "a cat")
    assert same == {"psnr": math.inf, "ssim": 1.0, "psnr-frame": math.inf, "ssim-frame": 1.0, "flicker": 0.0}
    one = noisy(moving(3), 1)
    found = metrics.measure(one, plain, "a cat")
    assert found["psnr"] == pytest.approx((120 + 120 + found["psnr-frame"]) / 3)
    assert identical(plain, Video(moving(3), 4.0)) and not identical(plain, one)
    with pytest.raises(SettingError, match="A video of 2 frames cannot be compared with one of 3"):
        metrics.measure(Video(moving(2), 8.0), plain, "a cat")


def test_pictures_keep_their_metrics_and_one_metric_brings_its_own_worst_frame() -> None:
    metrics = choose_metrics("psnr,ssim")
    assert suited(metrics, Settings("a cat", 7, 64, 48, 4)) is metrics
    assert [info.name for info in suited(choose_metrics("ssim"), VIDEO).infos] == ["ssim", "ssim-frame", "flicker"]


def test_only_what_changes_from_frame_to_frame_flickers() -> None:
    plain = Video(np.full((20, 4, 4, 3), 100, np.uint8), 8.0)
    still_wrong = Video(plain.frames + np.uint8(50), 8.0)
    every_other = plain.frames.copy()
    every_other[::2] += 6
    assert flicker(still_wrong, plain) == 0
    assert flicker(Video(every_other, 8.0), plain) == pytest.approx(6)
    assert flicker(Video(plain.frames[:1], 8.0), Video(plain.frames[:1], 8.0)) == 0


@pytest.mark.parametrize("fps", [8.0, 23.976, 60.0])
def test_a_video_is_kept_exactly_with_the_frames_that_do_not_change(tmp_path: Path, fps: float) -> None:
    frames = moving(9)
    frames[3:6] = frames[2]
    (tmp_path / "cat.webp").write_bytes(Video(frames, fps).webp())
    (tmp_path / "cat.npz").write_bytes(Video(frames, fps).npz())
    assert np.array_equal(webp_video(tmp_path / "cat.webp", fps).frames, frames)
    kept = kept_video(tmp_path / "cat.npz")
    assert kept is not None and np.array_equal(kept.frames, frames) and kept.fps == fps
    assert np.array_equal(np.asarray(kept.middle), frames[4])
    damaged = bytearray((tmp_path / "cat.npz").read_bytes())
    damaged[80:120] = b"\xff" * 40
    (tmp_path / "cat.npz").write_bytes(damaged)
    assert kept_video(tmp_path / "cat.npz") is None
    (tmp_path / "cat.npz").write_bytes(b"half a file")
    assert kept_video(tmp_path / "cat.npz") is None and kept_video(tmp_path / "gone.npz") is None
