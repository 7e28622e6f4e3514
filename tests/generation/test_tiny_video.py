"""The bundled video model: it moves as told, in few steps, and is plain diffusers without the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline

import h2gen
from h2gen.models.catalogue import resolve
from h2gen.output.metadata import read_metadata


@pytest.fixture(scope="module")
def session() -> Any:
    return h2gen.load("tiny-video", device="cpu")


def test_without_the_cache_it_is_the_pipeline_of_diffusers(session: Any) -> None:
    made = session.generate("a cat grows", steps=2, frames=5, seed=7, cache=None)
    pipe = HunyuanVideoPipeline.from_pretrained(resolve("tiny-video").location, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(
        "a cat grows",
        negative_prompt="",
        true_cfg_scale=3.0,
        num_inference_steps=2,
        height=64,
        width=64,
        num_frames=5,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).frames[0]
    assert made.frames.shape == (5, 64, 64, 3)
    assert np.array_equal(made.frames, (plain * 255).round().astype(np.uint8))


def placed(frame: Any) -> tuple[float, float, int]:
    """Where the thing on a white frame is, in pixels from the left and the top, and how many pixels it has."""
    rows, columns = np.nonzero(frame.min(axis=2) < 160)
    return float(columns.mean()), float(rows.mean()), len(rows)


@pytest.mark.slow
def test_it_moves_as_told_with_the_default_cache(session: Any, tmp_path: Path) -> None:
    made = session.generate("a cat moves left", steps=12, seed=7, out=tmp_path / "made.webp")
    (x, y, _), (to_x, to_y, _) = placed(made.frames[0]), placed(made.frames[-1])
    assert to_x < x - 8 and abs(to_y - y) < 4
    assert made.summary.share < 1 and read_metadata(tmp_path / "made.webp").settings.frames == 9
    grown = session.generate("a car grows", steps=12, seed=7).frames
    assert placed(grown[-1])[2] > 1.7 * placed(grown[0])[2]
