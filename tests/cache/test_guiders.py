"""Guidance that runs the same text once more through changed blocks: another pass of the step, not the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.guiders import SkipLayerGuidance
from diffusers.hooks import HookRegistry, LayerSkipConfig
from diffusers.hooks.layer_skip import AttentionProcessorSkipHook
from diffusers.modular_pipelines.flux2.modular_blocks_flux2_klein_base import Flux2KleinBaseAutoBlocks

from h2gen.cache import StepRecord, h2_cache
from tests.cache.drive import flux, latents, position_ids, prompt, same, sigmas
from tests.cache.test_time import queue_the_time
from tests.small import flux2_klein_pipeline, quiet, run_kwargs, scheduler

STEPS = 8
TINY = {"tau1": 1e-12, "tau2": 1e-12}
ALWAYS = {"tau1": 1e9, "tau2": 1e9}
PASSES = ["cond", "uncond", "cond 2"]


@pytest.fixture(params=["the host", "the device"])
def timestep_known_to(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "the device":
        queue_the_time(monkeypatch)


# diffusers' own guiders


def modular(guider: Any) -> Any:
    base: Flux2KleinPipeline = flux2_klein_pipeline(is_distilled=False)
    pipe = Flux2KleinBaseAutoBlocks().init_pipeline()
    pipe.update_components(**{name: part for name, part in base.components.items() if name in pipe.components})
    pipe.update_components(guider=guider)
    return quiet(pipe)


def made(pipe: Any) -> np.ndarray:
    asked = run_kwargs(flux2_klein_pipeline(is_distilled=False), steps=STEPS)
    return np.asarray(pipe(**asked, output="images"))


def skipping(stack: str, *layers: int) -> Any:
    """Guidance by skipped layers, from the second step until the sixth."""
    config = LayerSkipConfig(indices=list(layers), fqn=stack)
    return SkipLayerGuidance(3.0, skip_layer_config=config, skip_layer_guidance_stop=0.8)


LAYERS = [("transformer_blocks", 0), ("transformer_blocks", 1), ("single_transformer_blocks", 2)]


@pytest.mark.parametrize("layer", LAYERS, ids=["the first", "one that swaps text and image", "a single one"])
@pytest.mark.usefixtures("timestep_known_to")
def test_skipped_layers_are_another_pass_with_residuals_of_its_own(layer: tuple[str, int]) -> None:
    pipe = modular(skipping(*layer))
    plain = made(pipe)
    for settings in (TINY, TINY | {"forecast": 1}, {"tau1": 0, "tau2": 0, "tolerance": 1e-12}, {"plan": "F" * STEPS}):
        with h2_cache(pipe, **settings) as trace:
            assert np.array_equal(made(pipe), plain)
        guided = range(1, 6)
        wanted = [(step, name) for step in range(STEPS) for name in PASSES[: 3 if step in guided else 2]]
        assert [(step.step, step.context) for step in trace.steps] == wanted
        assert {(step.context, step.blocks_run) for step in trace.steps} == {("cond", 7), ("uncond", 7), ("cond 2", 6)}


def test_a_second_pass_over_a_text_does_not_wait_for_the_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, pipe = queue_the_time(monkeypatch), modular(skipping("single_transformer_blocks", 2))
    with h2_cache(pipe, **TINY) as trace:
        made(pipe)
    assert len(waits) == 1 and {step.context for step in trace.steps} == set(PASSES)


def test_passes_of_guidance_that_ends_do_not_keep_the_others_from_skipping() -> None:
    pipe = modular(skipping("single_transformer_blocks", 2))
    with h2_cache(pipe, tolerance=0.2, warmup_steps=6) as trace:
        made(pipe)
    assert [step.step for step in trace.steps if step.skipped] == [6, 6]


# A loop of one's own


@contextmanager
def perturbed(model: Any) -> Iterator[None]:
    """Perturbed attention in a block. diffusers' guider for it does not know the attention of Flux, its hook does."""
    registry = HookRegistry.check_if_exists_or_initialize(model.transformer_blocks[1].attn)
    registry.register_hook(AttentionProcessorSkipHook(None, skip_attention_scores=True), "perturbed")
    yield
    registry.remove_hook("perturbed")


@torch.no_grad()
def guided(model: Any, *, copied: bool = False, begins: int = 0) -> list[torch.Tensor]:
    """Each step runs a text twice, the second time through a changed block, from a step on."""
    inputs, outputs = position_ids(model) | prompt(model), []
    for step, sigma in enumerate(sigmas(STEPS)):
        given = latents(model, sigma)
        outputs.append(model(**given, **inputs, return_dict=False)[0])
        if copied:  # each pass has a tensor of its own
            given["hidden_states"] = given["hidden_states"].clone()
        if step >= begins:
            with perturbed(model):
                outputs.append(model(**given, **inputs, return_dict=False)[0])
    return outputs


def outcomes(steps: list[StepRecord], context: str) -> str:
    return "".join("F" if step.full else "r" for step in steps if step.context == context)


@pytest.mark.parametrize("copied", [False, True], ids=["the same latents", "copies"])
@pytest.mark.parametrize("begins", [0, 2])
@pytest.mark.usefixtures("timestep_known_to")
def test_a_repeated_text_is_another_pass_of_the_step(copied: bool, begins: int) -> None:
    model = flux()
    plain = guided(model, begins=begins)
    assert not torch.equal(plain[-2], plain[-1])
    with h2_cache(model, **TINY) as trace:
        assert same(guided(model, copied=copied, begins=begins), plain)
    assert [step.step for step in trace.steps if step.context == "cond"] == list(range(STEPS))
    assert [step.step for step in trace.steps if step.context == "cond 2"] == list(range(begins, STEPS))
    with h2_cache(model, **ALWAYS) as trace:
        guided(model, copied=copied, begins=begins)
    assert outcomes(trace.steps, "cond") == "F" + "r" * (STEPS - 1)
    assert outcomes(trace.steps, "cond 2") in ("F" + "r" * (STEPS - 1 - begins), "FF" + "r" * (STEPS - 2 - begins))


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.usefixtures("timestep_known_to")
def test_a_step_that_is_repeated_on_and_on_keeps_no_more_than_a_few_passes(scheduled: bool) -> None:
    model, solver = flux(), scheduler()
    if scheduled:
        solver.set_timesteps(2)
        solver.set_begin_index(1)
    inputs = latents(model, float(solver.sigmas[1]) if scheduled else 0.5) | position_ids(model) | prompt(model)
    with torch.no_grad(), h2_cache(model, **ALWAYS) as trace:
        outputs = [model(**inputs, return_dict=False)[0] for _ in range(7)]
    assert [step.run for step in trace.steps] == [0, 0, 0, 1, 1, 1, 2]
    assert all(step.full for step in trace.steps) and same(outputs[1:], outputs[:1] * 6)


@pytest.mark.usefixtures("timestep_known_to")
def test_a_pass_that_pauses_begins_anew() -> None:
    model, inputs = flux(), None
    inputs = position_ids(model)
    texts = [prompt(model, seed=seed) for seed in (100, 110)]
    with torch.no_grad(), h2_cache(model, **ALWAYS) as trace:
        for step, sigma in enumerate(sigmas(STEPS)):
            for text in texts[: 1 if step in (3, 4) else 2]:
                model(**latents(model, sigma), **inputs, **text)
    assert outcomes(trace.steps, "cond") == "F" + "r" * (STEPS - 1)
    assert outcomes(trace.steps, "uncond") == "FrrFrr"
