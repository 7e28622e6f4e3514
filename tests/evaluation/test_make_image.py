"""Measuring when memory runs out: all images are made in the same way, or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import h2gen
from h2gen.errors import OutOfMemory
from h2gen.evaluation import methods
from h2gen.evaluation.make_image import ImageMaker
from h2gen.evaluation.peers import PEERS, EqualCost
from h2gen.evaluation.results import Case


def test_relief_is_for_the_first_image_and_then_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    session, notices, tiles, full = h2gen.load("tiny"), [], [], {"whole": True, "tiled": False}
    decode = session.pipe.vae.decode

    def limited(*arguments: Any, **more: Any) -> Any:
        tiles.append(session.pipe.vae.use_tiling)
        if full["tiled" if tiles[-1] else "whole"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*arguments, **more)

    monkeypatch.setattr(session.pipe.vae, "decode", limited)
    settings = session.settings("-", seed=0, steps=2, cfg=1.0, cache=None)
    maker = ImageMaker(session, [Case("a cat", 1), Case("a dog", 2)], settings, notices.append)
    for case in (0, 1):
        assert maker.make(methods.reference(2), case).image.size == (128, 128)
    assert tiles == [False, True, True]
    assert notices == ["Out of memory on cpu; trying again with tiled decoding."]

    full["tiled"] = True
    with pytest.raises(OutOfMemory, match="use a smaller --size"):
        maker.make(methods.reference(2), 0)
    assert tiles[3:] == [True]


def test_an_interrupt_is_not_forgotten_when_the_same_image_runs_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    session, attempts = h2gen.load("tiny"), []

    def full(*_: object, **__: object) -> None:
        attempts.append(1)
        session.interrupt()
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session.pipe.transformer, "forward", full)
    maker = ImageMaker(session, [Case("a cat", 1)], session.settings("-", seed=0, steps=2, cfg=1.0, cache=None))
    with pytest.raises(KeyboardInterrupt):
        maker.make(methods.reference(2), 0)
    assert len(attempts) == 1


def test_an_input_picture_is_compared_in_its_own_pipeline_and_by_the_steps_that_run() -> None:
    session, pipes = h2gen.load("tiny"), []
    image = (Image.new("RGB", (64, 64), "orange"), 0.5)
    settings = session.settings("-", seed=0, steps=6, size=64, cfg=1.0, cache=None, image=image)
    maker = ImageMaker(session, [Case("a cat", 1)], settings)
    assert settings.steps_run == 3
    assert maker.make(methods.reference(6), 0).share == 1
    assert maker.make(methods.fewer(3, 6), 0).share == pytest.approx(2 / 3)  # 1.5 steps, rounded up
    sea = methods.peer(EqualCost(PEERS["sea"], 100.0, 0.5, 0.5, 1), 6, 1, settings.steps_run)
    with_pipe = replace(sea, around=lambda pipe: pipes.append(type(pipe).__name__) or sea.around(pipe))
    assert maker.make(with_pipe, 0).share == pytest.approx(2 / 3)  # its first and its last step run
    assert pipes == ["FluxImg2ImgPipeline"]
