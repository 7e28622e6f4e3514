"""Every guider of diffusers that a modular pipeline of FLUX.2 takes: as without the cache, and with fewer blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from diffusers import guiders
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig

from h2gen.cache import h2_cache
from tests.matrix.drive import STEPS, made, pipeline_of, plain
from tests.matrix.rows import ROWS

pytestmark = pytest.mark.no_cover

ROW = next(row for row in ROWS if row.pipeline == "Flux2KleinBaseAutoBlocks" and "references" in row.call)
STACK = "single_transformer_blocks"

GUIDERS: dict[str, Callable[[Any], Any]] = {
    "AdaptiveProjectedGuidance": lambda cls: cls(3.0, adaptive_projected_guidance_momentum=-0.5),
    "AdaptiveProjectedMixGuidance": lambda cls: cls(adaptive_projected_guidance_start_step=2),
    "AutoGuidance": lambda cls: cls(3.0, auto_guidance_config=LayerSkipConfig([1], fqn=STACK, dropout=1.0)),
    "ClassifierFreeGuidance": lambda cls: cls(3.0),
    "ClassifierFreeZeroStarGuidance": lambda cls: cls(3.0, zero_init_steps=1),
    "MagnitudeAwareGuidance": lambda cls: cls(3.0),
    "SkipLayerGuidance": lambda cls: cls(
        3.0, skip_layer_config=LayerSkipConfig([2], fqn=STACK), skip_layer_guidance_start=0, skip_layer_guidance_stop=1
    ),
    "SmoothedEnergyGuidance": lambda cls: cls(
        3.0, seg_blur_sigma=1.0, seg_guidance_config=SmoothedEnergyGuidanceConfig([1], fqn="transformer_blocks")
    ),
    "TangentialClassifierFreeGuidance": lambda cls: cls(3.0),
}
NOT_HERE = {
    "FrequencyDecoupledGuidance",  # needs kornia
    "LTX2Guidance",  # for the passes of LTX-2, which makes sound too
    "PerturbedAttentionGuidance",  # see below
}


@contextmanager
def guided(name: str, make: Callable[[Any], Any]) -> Iterator[Any]:
    pipe = pipeline_of(ROW)
    before = pipe.guider
    pipe.update_components(guider=make(getattr(guiders, name)))
    try:
        yield pipe
    finally:
        pipe.update_components(guider=before)


def test_every_guider_of_diffusers_is_here() -> None:
    names = {name for name in dir(guiders) if name.endswith("Guidance")} - {"BaseGuidance"}
    assert names == GUIDERS.keys() | NOT_HERE


def test_perturbed_attention_does_not_know_flux_without_the_cache_either() -> None:
    layers = {"perturbed_guidance_layers": [1], "perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    known = guided("PerturbedAttentionGuidance", lambda cls: cls(3.0, **layers))
    with known, pytest.raises(AttributeError, match="is_cross_attention"):
        made(ROW)


@contextmanager
def passes_counted(pipe: Any) -> Iterator[list[int]]:
    """The transformer's passes."""
    calls: list[int] = []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize("name", GUIDERS)
@pytest.mark.slow
def test_a_guider_has_passes_of_its_own(name: str) -> None:
    alone = plain(ROW)
    with guided(name, GUIDERS[name]) as pipe:
        with passes_counted(pipe) as calls:
            wanted = made(ROW)
        assert not np.array_equal(wanted, alone)
        for settings in ({"tau1": 0, "tau2": 0}, {"tau1": 1e-12, "tau2": 1e-12}, {"tolerance": 1e-12}):
            with h2_cache(pipe, **settings) as trace:
                assert np.array_equal(made(ROW), wanted)
            assert len({(step.step, step.context) for step in trace.steps}) == len(trace.steps) == len(calls)
            assert {step.step for step in trace.steps} == set(range(STEPS))
            assert {step.run for step in trace.steps} == {0}
        assert {step.context for step in trace.steps} >= {"cond", "uncond"}
        for settings in ({"tau1": 1e9, "tau2": 1e9}, {"plan": "FFSFSF"}, {"tolerance": 100.0}):
            with h2_cache(pipe, **settings) as trace:
                got = made(ROW)
            assert len(trace.steps) == len(calls)
            assert trace.summary.blocks_run < trace.summary.blocks_total
            assert 0 < np.abs(got - wanted).max() < np.inf
