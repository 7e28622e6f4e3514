"""What is kept is freed with its run, however the run ended."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline

from h2gen.cache import h2_cache
from tests.cache.drive import run
from tests.small import flux_pipeline, flux_transformer, run_kwargs

WIDTH = 32  # of the transformer's streams


class Halt(Exception):
    """Raised inside a block."""


_LEFT: list[torch.Tensor] = []


def leave_out_others() -> None:
    """Let ``streams`` leave out what earlier tests have left. It is held, so that its ids are not used again."""
    gc.collect()
    _LEFT.clear()
    _LEFT.extend(tensor for each in streams() if (tensor := each()) is not None)


def streams() -> list[weakref.ref[torch.Tensor]]:
    """Tensors now alive that may be kept residuals or summaries: as wide as the streams, and more than text tokens."""
    left = {id(tensor) for tensor in _LEFT}
    return [
        weakref.ref(found)
        for found in gc.get_objects()
        if type(found) is torch.Tensor and found.ndim == 3 and found.shape[1] >= 16 and found.shape[2] == WIDTH
        if id(found) not in left
    ]


def still_alive(tensors: list[weakref.ref[torch.Tensor]]) -> int:
    gc.collect()
    return sum(tensor() is not None for tensor in tensors)


@pytest.fixture(autouse=True)
def _own_tensors() -> None:
    leave_out_others()


@pytest.mark.parametrize(
    ("cls", "more"),
    [(FluxPipeline, {}), (FluxImg2ImgPipeline, {"negative_prompt": "a dog", "true_cfg_scale": 3.0})],
    ids=["text to image", "image to image with guidance"],
)
def test_memory_is_free_once_a_run_is_over(cls: type, more: dict[str, Any]) -> None:
    pipe, kept = flux_pipeline(cls), []

    def look(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            gc.collect()
            kept.extend(streams())
        return kwargs

    with h2_cache(pipe.transformer, tau1=1e-9, tau2=1e-9):
        pipe(**run_kwargs(pipe, steps=2), callback_on_step_end=look, **more)
        assert kept
        assert still_alive(kept) == 0


def test_memory_is_free_once_a_run_has_failed() -> None:
    pipe, kept = flux_pipeline(), []

    def fail(*_: Any) -> None:
        kept.append(streams())
        if len(kept) == 2:
            raise Halt

    handle = pipe.transformer.single_transformer_blocks[1].attn.register_forward_pre_hook(fail)
    with h2_cache(pipe.transformer, tau1=1e-9, tau2=1e-9):
        with pytest.raises(Halt):
            pipe(**run_kwargs(pipe, steps=2))
        handle.remove()
        assert kept[1]
        assert still_alive(kept[1]) == 0


def test_memory_is_free_once_a_run_was_interrupted_between_two_steps() -> None:
    """Here diffusers never tells the hooks that the run is over."""
    pipe, kept = flux_pipeline(), []

    def interrupt(*_: Any) -> None:
        gc.collect()
        kept.extend(streams())
        raise KeyboardInterrupt

    with h2_cache(pipe.transformer, tau1=1e-9, tau2=1e-9):
        with pytest.raises(KeyboardInterrupt):
            pipe(**run_kwargs(pipe, steps=2), callback_on_step_end=interrupt)
        assert kept
        assert still_alive(kept) == 0


def test_memory_is_free_once_a_loop_of_ones_own_lets_go_of_its_inputs() -> None:
    model = flux_transformer()
    with h2_cache(model, tau1=1e-9, tau2=1e-9):
        run(model, 2)
        assert still_alive(streams()) == 0


def test_a_removed_cache_holds_on_to_nothing() -> None:
    pipe = flux_pipeline()
    transformer = weakref.ref(pipe.transformer)
    with h2_cache(pipe.transformer, tau1=0.3, tau2=0.4) as trace:
        pipe(**run_kwargs(pipe, steps=2))
    del pipe
    gc.collect()
    assert transformer() is None
    assert len(trace.steps) == 2
