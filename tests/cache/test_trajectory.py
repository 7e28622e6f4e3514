"""What is kept belongs to one trajectory: every call of a pipeline starts empty, however the last one ended."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload, add_hook_to_module
from diffusers import FluxImg2ImgPipeline, FluxKontextPipeline, FluxPipeline
from peft import LoraConfig, get_peft_model_state_dict

from h2gen.cache import CacheConfig, StepRecord, apply, h2_cache, remove
from tests.cache.drive import latents, position_ids, prompt, untraced
from tests.cache.test_memory import streams
from tests.cache.test_time import queue_the_time
from tests.small import flux2_klein_pipeline, flux_pipeline, flux_transformer, run_kwargs


@pytest.fixture(params=["the host", "the device"])
def timestep_known_to(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "the device":
        queue_the_time(monkeypatch)


STEPS = 5
TAU = {"tau1": 0.35, "tau2": 0.53}
TAU_FLUX2 = {"tau1": 1.0, "tau2": 1.3}
CFG = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
SMALL = {"layers": 2, "single_layers": 2}


def call(pipe: Any, steps: int = STEPS, **more: Any) -> np.ndarray:
    return pipe(**(run_kwargs(pipe, steps=steps) | more)).images


def essence(record: StepRecord) -> tuple[Any, ...]:
    """A record without its time and the number of its run."""
    return record.step, record.context, record.timestep, record.structure, record.detail, record.blocks_run


def tau(pipe: Any) -> dict[str, float]:
    """Thresholds that some steps of a short run stay below, in each stage."""
    return TAU_FLUX2 if type(pipe).__name__.startswith("Flux2") else TAU


def fresh(pipe: Any, **more: Any) -> tuple[np.ndarray, list[tuple[Any, ...]]]:
    """The result of a call with a new cache."""
    with h2_cache(pipe.transformer, **tau(pipe)) as trace:
        image = call(pipe, **more)
    assert {record.run for record in trace.steps} == {0}
    return image, [essence(record) for record in trace.steps]


def last_run(trace: Any) -> list[tuple[Any, ...]]:
    number = trace.steps[-1].run
    return [essence(record) for record in trace.steps if record.run == number]


def text_to_image() -> Any:
    return flux_pipeline(FluxPipeline, **SMALL)


def image_to_image() -> Any:
    """Like most pipelines, this one never sets a cache context."""
    return flux_pipeline(FluxImg2ImgPipeline, **SMALL)


def kontext() -> Any:
    return flux_pipeline(FluxKontextPipeline, **SMALL)


def flux2() -> Any:
    return flux2_klein_pipeline(is_distilled=False, **SMALL)


@functools.cache
def _alone(make: Callable[[], Any], more: tuple[tuple[str, Any], ...]) -> tuple[np.ndarray, list[tuple[Any, ...]]]:
    return fresh(make(), **dict(more))


def alone(make: Callable[[], Any], **more: Any) -> tuple[np.ndarray, list[tuple[Any, ...]]]:
    """The result of a new pipeline's first call."""
    return _alone(make, tuple(sorted(more.items())))


PIPELINES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "text to image": (text_to_image, {}),
    "image to image": (image_to_image, {}),
    "image to image with guidance": (image_to_image, CFG),
    "FLUX.2 with guidance": (flux2, {"guidance_scale": 3.0}),
}
all_pipelines = pytest.mark.parametrize(("make", "more"), PIPELINES.values(), ids=PIPELINES)
without_contexts = pytest.mark.parametrize("more", [{}, CFG], ids=["no guidance", "true guidance"])


def test_the_thresholds_of_these_tests_reuse_something_and_not_everything() -> None:
    for make, more in PIPELINES.values():
        outcomes = {(step[3].outcome.value, step[4].outcome.value) for step in alone(make, **more)[1]}
        assert {("computed", "computed"), ("reused", "forced")} <= outcomes


@all_pipelines
def test_every_call_decides_as_the_first_did(make: Any, more: dict[str, Any]) -> None:
    pipe = make()
    image, steps = alone(make, **more)
    with h2_cache(pipe.transformer, **tau(pipe)) as trace:
        images = [call(pipe, **more) for _ in range(3)]
    assert all(np.array_equal(again, image) for again in images)
    assert [essence(record) for record in trace.steps] == steps * 3
    assert [record.run for record in trace.steps] == [number for number in range(3) for _ in steps]


@all_pipelines
def test_calls_of_one_step_are_each_a_trajectory(make: Any, more: dict[str, Any]) -> None:
    """Two calls of one step have the same timestep, as the two passes of one guided step have."""
    pipe = make()
    image, steps = alone(make, steps=1, **more)
    with h2_cache(pipe.transformer, tau1=1e9, tau2=1e9) as trace:
        images = [call(pipe, 1, **more) for _ in range(3)]
    assert [essence(record) for record in trace.steps] == steps * 3
    assert all(np.array_equal(again, image) for again in images)


class Halt(Exception):
    """Raised inside a block."""


def raising(block: torch.nn.Module, at: int) -> Any:
    """Makes the block's attention raise at its call number ``at``, once."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            raise Halt

    return block.attn.register_forward_pre_hook(hook)


@pytest.mark.parametrize(
    ("where", "at"), [("transformer_blocks.0", 1), ("transformer_blocks.1", 1), ("single_transformer_blocks.0", 3)]
)
@without_contexts
def test_an_exception_in_a_block_leaves_nothing_behind(where: str, at: int, more: dict[str, Any]) -> None:
    pipe = image_to_image()
    image, steps = alone(image_to_image, **more)
    handle = raising(pipe.transformer.get_submodule(where), at)
    with h2_cache(pipe.transformer, **TAU) as trace:
        with pytest.raises(Halt):
            call(pipe, **more)
        again = call(pipe, **more)
    handle.remove()
    assert np.array_equal(again, image)
    assert last_run(trace) == steps


@pytest.mark.parametrize(
    ("make", "stop", "more"),
    [
        (image_to_image, 0, {}),
        (image_to_image, 0, CFG),
        (image_to_image, 2, CFG),
        (kontext, 0, CFG),
        (kontext, 2, {}),
        (text_to_image, 0, CFG),
        (text_to_image, 2, {}),
    ],
)
def test_an_interrupted_call_leaves_nothing_behind(make: Any, stop: int, more: dict[str, Any]) -> None:
    pipe = make()
    image, steps = alone(make, **more)

    def interrupt(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == stop:
            raise KeyboardInterrupt
        return kwargs

    with h2_cache(pipe.transformer, **TAU) as trace:
        with pytest.raises(KeyboardInterrupt):
            call(pipe, callback_on_step_end=interrupt, **more)
        again = call(pipe, **more)
    assert np.array_equal(again, image)
    assert last_run(trace) == steps
    assert len(trace.steps) == len(steps) + (stop + 1) * (2 if more else 1)


def test_a_call_that_is_told_to_stop_leaves_nothing_behind() -> None:
    pipe = image_to_image()
    image, steps = alone(image_to_image)

    def stop(pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 2
        return kwargs

    with h2_cache(pipe.transformer, **TAU) as trace:
        call(pipe, callback_on_step_end=stop)
        again = call(pipe)
    assert np.array_equal(again, image)
    assert last_run(trace) == steps


CHANGES: dict[str, dict[str, Any]] = {
    "size": {"height": 96, "width": 48},
    "same number of tokens": {"height": 32, "width": 128},
    "steps": {"num_inference_steps": 4},
    "batch": {"num_images_per_prompt": 2},
    "prompt": {"prompt": "two dogs in a boat"},
    "guidance": CFG,
}


@pytest.mark.parametrize(
    ("make", "changes"), [(text_to_image, ["same number of tokens", "guidance"]), (image_to_image, list(CHANGES))]
)
def test_calls_of_other_kinds_do_not_touch_each_other(make: Any, changes: list[str]) -> None:
    pipe = make()
    with h2_cache(pipe.transformer, **TAU) as trace:
        for name in ["none", *changes, "none"]:
            change = CHANGES.get(name, {})
            image, steps = alone(make, **change)
            assert np.array_equal(call(pipe, **change), image), name
            assert last_run(trace) == steps, name


def test_a_change_of_dtype_starts_afresh() -> None:
    one, other = alone(text_to_image), fresh(text_to_image().to(torch.bfloat16))
    pipe = text_to_image()
    with h2_cache(pipe.transformer, **TAU) as trace:
        call(pipe)
        assert last_run(trace) == one[1]
        image = call(pipe.to(torch.bfloat16))
        assert last_run(trace) == other[1]
        assert np.array_equal(image, other[0])


def add_lora(pipe: Any) -> None:
    torch.manual_seed(0)
    pipe.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "proj_mlp"], init_lora_weights=False)
    )


LORA_CHANGES: dict[str, Callable[[Any], None]] = {
    "none": lambda pipe: None,
    "loaded": add_lora,
    "scaled": lambda pipe: pipe.transformer.set_adapters(["default"], [0.3]),
    "switched off": lambda pipe: pipe.transformer.disable_adapters(),
    "removed": lambda pipe: pipe.transformer.delete_adapters(["default"]),
}


def test_a_lora_may_be_loaded_scaled_and_removed_while_the_cache_is_on() -> None:
    other, cached = text_to_image(), text_to_image()
    trace = apply(cached.transformer, CacheConfig(**TAU))
    pictures = []
    for change in LORA_CHANGES.values():
        change(other)
        change(cached)
        image, steps = fresh(other)
        pictures.append(call(cached))
        assert np.array_equal(pictures[-1], image)
        assert last_run(trace) == steps
    remove(cached.transformer)
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    assert np.array_equal(pictures[0], pictures[4])
    assert list(cached.transformer.state_dict()) == list(other.transformer.state_dict())


def test_a_lora_file_finds_its_layers_while_the_cache_is_on() -> None:
    donor, pipe = text_to_image(), text_to_image()
    add_lora(donor)
    weights = {f"transformer.{name}": value for name, value in get_peft_model_state_dict(donor.transformer).items()}
    image, steps = fresh(donor)
    with h2_cache(pipe, **TAU) as trace:
        pipe.load_lora_weights(weights, adapter_name="style")
        assert np.array_equal(call(pipe), image)
    assert last_run(trace) == steps


def test_a_loop_of_ones_own_may_use_the_same_inputs_for_the_next_picture() -> None:
    """Only the timestep going up again shows that a second trajectory has begun."""
    model = flux_transformer()
    same = position_ids(model) | prompt(model)
    with torch.no_grad(), h2_cache(model, tau1=1e9, tau2=1e9) as trace:
        for seed in (0, 1):
            for sigma in (1.0, 0.7, 0.4):
                model(**(latents(model, sigma, seed=seed) | same))
    assert [record.run for record in trace.steps] == [0, 0, 0, 1, 1, 1]
    assert [record.structure.outcome.value for record in trace.steps] == ["computed", "reused", "reused"] * 2


@pytest.mark.parametrize("new", ["text", "ids", "both"])
@pytest.mark.usefixtures("timestep_known_to")
@untraced
def test_a_loop_that_makes_new_inputs_at_each_step_is_told_and_keeps_nothing(new: str) -> None:
    model, kept, contexts = flux_transformer(), [], ["cond", "uncond"]
    ids, texts = position_ids(model), [prompt(model, seed=seed) for seed in (100, 110)]
    told = pytest.warns(RuntimeWarning, match="nothing is reused.*before the loop")
    with told as warned, torch.no_grad(), h2_cache(model, tau1=1e9, tau2=1e9) as trace:
        for sigma in (1.0, 0.7, 0.4, 0.2):
            given = latents(model, sigma)
            for turn in range(2):
                inputs = position_ids(model) if new != "text" else ids
                text = prompt(model, seed=100 + 10 * turn) if new != "ids" else texts[turn]
                model(**given, **inputs, **text)
                del inputs, text
            kept.append(len(streams()))
    assert len(warned) == 1 and kept[1:] == [kept[0]] * 3
    assert all(record.full for record in trace.steps)
    if new == "text":
        assert [(record.step, record.context) for record in trace.steps] == [(s, c) for s in range(4) for c in contexts]


def test_calls_of_one_step_are_told_nothing() -> None:
    pipe = text_to_image()
    with warnings.catch_warnings(), h2_cache(pipe, **TAU):
        warnings.simplefilter("error")
        for _ in range(3):
            call(pipe, 1)


@pytest.mark.parametrize(
    "where", ["transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.1"]
)
def test_a_step_that_failed_is_computed_when_it_is_tried_again(where: str) -> None:
    """With the same input objects: what the failed pass kept is half a step."""
    model = flux_transformer(layers=2, single_layers=2)
    same = position_ids(model) | prompt(model)
    with torch.no_grad():
        wanted = model(**(latents(model, 0.6) | same), return_dict=False)[0]
        with h2_cache(model, tau1=1e-6, tau2=1e-6) as trace:
            model(**(latents(model, 0.9) | same))
            handle = raising(model.get_submodule(where), 1)
            with pytest.raises(Halt):
                model(**(latents(model, 0.6) | same))
            handle.remove()
            got = model(**(latents(model, 0.6) | same), return_dict=False)[0]
    assert trace.steps[-1].full
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("before", ["no call", "a call"])
def test_a_cache_on_a_pipeline_bears_a_loop_of_ones_own(before: str) -> None:
    """The transformer's steps are then not those of the pipeline's schedule."""
    pipe = text_to_image()
    model, own = pipe.transformer, [0.9, 0.6, 0.3, 0.2]
    with torch.no_grad(), h2_cache(pipe, tau1=1e9, tau2=1e9) as trace:
        if before == "a call":
            call(pipe, 3)
            trace.clear()
        same = position_ids(model) | prompt(model)
        for sigma in own:
            model(**(latents(model, sigma) | same))
    assert [record.sigma for record in trace.steps] == pytest.approx(own)
    assert [record.structure.outcome.value for record in trace.steps] == ["computed", "reused", "reused", "reused"]


@pytest.mark.parametrize("before", ["no call", "a call"])
def test_a_cache_on_a_pipeline_bears_another_pipeline_with_the_same_transformer(before: str) -> None:
    """As ``from_pipe`` makes it: transformer and scheduler are shared, the number of steps is not."""
    pipe = text_to_image()
    other = FluxImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    with h2_cache(pipe, tau1=1e9, tau2=1e9) as trace:
        if before == "a call":
            call(pipe, 3)
            trace.clear()
        call(other, 5)
    assert [record.timestep for record in trace.steps] == pytest.approx(other.scheduler.timesteps.tolist())
    assert [record.structure.outcome.value for record in trace.steps] == ["computed"] + ["reused"] * 4


def test_inputs_of_another_shape_in_mid_trajectory_are_a_miss() -> None:
    model = flux_transformer()
    ids, texts = position_ids(model), {batch: prompt(model, batch) for batch in (1, 2)}
    with torch.no_grad(), h2_cache(model, tau1=1e9, tau2=1e9) as trace, model.cache_context("cond"):
        for batch, sigma in ((1, 1.0), (1, 0.8), (2, 0.6), (2, 0.4), (1, 0.2)):
            model(**(latents(model, sigma, batch=batch) | ids | texts[batch]))
    assert [record.full for record in trace.steps] == [True, False, True, True, False, False, True]


def test_pipelines_that_put_accelerates_hooks_back_between_calls_stay_cached() -> None:
    """What ``enable_model_cpu_offload`` does to the transformer, also between calls, without a GPU."""
    pipe = text_to_image()
    image, steps = alone(text_to_image)
    with h2_cache(pipe, **TAU) as trace:
        for _ in range(3):
            add_hook_to_module(pipe.transformer, CpuOffload(execution_device="cpu"))
            assert np.array_equal(call(pipe), image)
            assert last_run(trace) == steps
            pipe.remove_all_hooks()
    assert [essence(record) for record in trace.steps] == steps * 3
    assert not hasattr(pipe.transformer, "_hf_hook")
    assert np.array_equal(call(pipe), call(text_to_image()))
    assert len(trace.steps) == 3 * STEPS
