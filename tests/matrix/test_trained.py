"""Rows that run on a bundled model too: what the default cache makes of a trained model's pictures and videos."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import h2gen
from h2gen.evaluation.metrics.psnr_ssim import psnr
from tests.matrix.rows import ROWS, Row
from tests.small import BUNDLED, mask, picture, quiet

pytestmark = pytest.mark.no_cover

TRAINED = [row for row in ROWS if row.trained]
SIZE, STEPS = 128, 28


@functools.cache
def base() -> Any:
    return quiet(diffusers.FluxPipeline.from_pretrained(BUNDLED).to(torch.float32))


@functools.cache
def pipeline_of(row: Row) -> Any:
    cls = getattr(diffusers, row.pipeline)
    wanted = inspect.signature(cls.__init__).parameters
    return quiet(cls(**{name: part for name, part in base().components.items() if name in wanted}))


@functools.cache
def video_pipeline() -> Any:
    folder = BUNDLED.with_name("tiny-video")
    return quiet(diffusers.HunyuanVideoPipeline.from_pretrained(folder, local_files_only=True))


def made_video() -> Image.Image:
    """The frames of a video, one below the other."""
    frames = video_pipeline()(
        "a cat grows", height=64, width=64, num_frames=9, num_inference_steps=STEPS, max_sequence_length=16,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).frames[0]  # fmt: skip
    return Image.fromarray(np.concatenate((frames * 255).round().astype(np.uint8)))


def made(row: Row) -> Image.Image:
    given: dict[str, Any] = {"image": picture().resize((SIZE, SIZE))} if row.key != "text" else {}
    if row.key == "inpaint":
        given["mask_image"] = mask().resize((SIZE, SIZE))
    if row.key != "text":
        given["strength"] = 0.8
    image: Image.Image = pipeline_of(row)(
        "a cat", height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=1.0, max_sequence_length=24,
        generator=torch.Generator().manual_seed(0), output_type="pil", **given,
    ).images[0]  # fmt: skip
    return image


@pytest.mark.slow
@pytest.mark.parametrize("row", TRAINED, ids=str)
def test_the_default_is_near_at_half_the_blocks(row: Row) -> None:
    video = row.pipeline == "HunyuanVideoPipeline"
    pipe, make = (video_pipeline(), made_video) if video else (pipeline_of(row), functools.partial(made, row))
    wanted = make()
    with h2gen.h2_cache(pipe) as trace:
        got = make()
    assert trace.summary.share < 0.6
    assert psnr(got, wanted) > 35
