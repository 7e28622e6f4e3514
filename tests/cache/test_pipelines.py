"""Every pipeline of diffusers that runs a Flux transformer: decisions and pictures equal the reference's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxControlNetPipeline, FluxImg2ImgPipeline, FluxPipeline

from h2gen.cache import CacheConfig, h2_cache
from h2gen.errors import CacheError
from tests.cache.drive import assert_same_decisions, between, kinds
from tests.cache.reference import Decision, Rules, reference
from tests.small import (
    BUNDLED,
    SIZE,
    flux2_klein_pipeline,
    flux2_pipeline,
    flux_pipeline,
    flux_transformer,
    mask,
    picture,
    quiet,
    run_kwargs,
)

pytestmark = pytest.mark.no_cover

STEPS = 5
SMALL = {"layers": 2, "single_layers": 3}
CFG = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
WIDE = {"in_channels": 32, "out_channels": 16}  # latents concatenated with those of a control picture


def derived(cls: type, base: Any) -> Any:
    wanted = inspect.signature(cls.__init__).parameters
    return quiet(cls(**{name: part for name, part in base.components.items() if name in wanted}))


@functools.cache
def make_pipeline(name: str) -> Any:
    if name == "Flux2KleinPipeline":
        return flux2_klein_pipeline(**SMALL)
    if name == "Flux2KleinPipeline undistilled":
        return flux2_klein_pipeline(is_distilled=False, **SMALL)
    if name in ("Flux2KleinKVPipeline", "Flux2KleinInpaintPipeline"):
        return derived(getattr(diffusers, name), flux2_klein_pipeline(**SMALL))
    if name == "Flux2Pipeline":
        return flux2_pipeline(**SMALL)
    cls = getattr(diffusers, name)
    if name.startswith("FluxControlNet"):
        return derived(cls, flux_pipeline(FluxControlNetPipeline))
    if name.startswith("FluxControl"):
        return flux_pipeline(cls, **WIDE, **SMALL)
    return flux_pipeline(cls, **SMALL)


def call(pipe: Any, steps: int = STEPS, **more: Any) -> np.ndarray:
    kwargs = run_kwargs(pipe, steps=steps) | more
    name = type(pipe).__name__
    if "Img2Img" in name:
        kwargs["image"] = picture()
    if "Inpaint" in name:
        kwargs |= {"image": picture(), "mask_image": mask()}
    return pipe(**kwargs).images


def natural(
    pipe: Any, passes: tuple[str, ...] = ("cond",), draw: Callable[..., np.ndarray] = call, **more: Any
) -> tuple[list[float], list[float]]:
    """What each stage's change is from step to step, when everything is computed."""
    with reference(pipe.transformer, Rules(1e-12, 1e-12), passes) as decisions:
        draw(pipe, **more)
    return (
        sorted(d.structure_change for d in decisions if d.structure_change is not None),
        sorted(d.detail_change for d in decisions if d.detail_change is not None),
    )


def compare(
    pipe: Any,
    rules: Rules,
    passes: tuple[str, ...] = ("cond",),
    rel: float = 1e-6,
    draw: Callable[..., np.ndarray] = call,
    target: Any = None,
    **more: Any,
) -> list[Decision]:
    """Runs the reference and the cache, and returns the decisions that both made."""
    with reference(pipe.transformer, rules, passes) as decisions:
        wanted = draw(pipe, **more)
    with h2_cache(target or pipe.transformer, tau1=rules.tau1, tau2=rules.tau2) as trace:
        got = draw(pipe, **more)
    assert_same_decisions(trace.steps, decisions, rel)
    assert [record.context for record in trace.steps] == list(passes) * (len(decisions) // len(passes))
    assert {record.run for record in trace.steps} == {0}
    assert [record.step for record in trace.steps] == [index // len(passes) for index in range(len(decisions))]
    if rel == 1e-6:
        assert np.array_equal(got, wanted)
    else:
        assert np.allclose(got, wanted, atol=1e-4)
    return decisions


PIPELINES = [
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxKontextPipeline",
    "FluxKontextInpaintPipeline",
    "FluxFillPipeline",
    "FluxControlPipeline",
    "FluxControlImg2ImgPipeline",
    "FluxControlInpaintPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
]
CONTROLNETS = ["FluxControlNetPipeline", "FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline"]


@pytest.mark.parametrize("name", PIPELINES)
def test_decisions_and_pictures_are_the_papers(name: str) -> None:
    pipe = make_pipeline(name)
    structure, detail = natural(pipe)
    rules = Rules(between(structure, 0.5), between(detail, 0.7))
    assert "all reused" in kinds(compare(pipe, rules, target=pipe))


@pytest.mark.parametrize("name", ["Flux2KleinPipeline", "Flux2Pipeline"])
def test_pipelines_with_reference_pictures_decide_as_the_paper_does(name: str) -> None:
    """Reference tokens follow the picture's; FLUX.2's pipelines make new ids at each step."""
    pipe, more = make_pipeline(name), {"image": picture()}
    structure, detail = natural(pipe, **more)
    assert len(kinds(compare(pipe, Rules(between(structure, 0.5), between(detail, 0.7)), **more))) > 1


@pytest.mark.parametrize("reference_picture", [None, picture()], ids=["text", "reference picture"])
def test_a_pipeline_that_keeps_keys_and_values_may_change_its_shape_in_mid_run(reference_picture: Any) -> None:
    """FLUX.2's KV pipeline passes the reference tokens only at the first step."""
    pipe = make_pipeline("Flux2KleinKVPipeline")
    size = {"height": SIZE, "width": SIZE, "max_sequence_length": 64, "num_inference_steps": STEPS}

    def draw() -> np.ndarray:
        generator = torch.Generator().manual_seed(7)
        return pipe(prompt="a cat", image=reference_picture, generator=generator, output_type="np", **size).images

    plain = draw()
    with h2_cache(pipe, tau1=0, tau2=0):
        assert np.array_equal(draw(), plain)
    with h2_cache(pipe, tau1=1e9, tau2=1e9) as trace:
        draw()
    first_of_its_shape = [0] if reference_picture is None else [0, 1]
    assert [record.step for record in trace.steps if record.full] == first_of_its_shape
    assert [record.step for record in trace.steps] == list(range(STEPS))


@pytest.mark.parametrize("name", ["FluxPipeline", "FluxKontextPipeline", "Flux2KleinPipeline"])
def test_the_detail_stage_alone_decides_as_the_paper_does(name: str) -> None:
    pipe = make_pipeline(name)
    rules = Rules(0.0, between(natural(pipe)[1], 0.5))
    assert kinds(compare(pipe, rules)) == {"full", "detail reused"}


@pytest.mark.parametrize("name", CONTROLNETS)
def test_controlnet_pipelines_decide_as_the_paper_does(name: str) -> None:
    pipe = make_pipeline(name)
    structure, detail = natural(pipe)
    rules = Rules(between(structure, 0.5), between(detail, 0.7))
    assert "all reused" in kinds(compare(pipe, rules, rel=1e-4))


@pytest.mark.parametrize(
    "name",
    [
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxKontextPipeline",
        "FluxKontextInpaintPipeline",
        "Flux2KleinPipeline undistilled",
        "Flux2KleinInpaintPipeline",
        "FluxControlNetPipeline",
    ],
)
def test_true_guidance_keeps_cond_and_uncond_apart(name: str) -> None:
    pipe, passes = make_pipeline(name), ("cond", "uncond")
    more = {"guidance_scale": 3.0} if "Klein" in name else CFG
    rel = 1e-4 if "ControlNet" in name else 1e-6
    structure, detail = natural(pipe, passes, **more)
    decisions = compare(pipe, Rules(between(structure, 0.4), between(detail, 0.7)), passes, rel, **more)
    assert len(kinds(decisions)) > 1
    assert decisions[0::2] != decisions[1::2]


@pytest.mark.parametrize("name", ["FluxPipeline", "FluxImg2ImgPipeline", "Flux2KleinPipeline undistilled"])
def test_off_is_plain_diffusers_bit_for_bit(name: str) -> None:
    pipe = make_pipeline(name)
    more = {"guidance_scale": 3.0} if "Klein" in name else CFG
    plain = call(pipe, **more)
    with h2_cache(pipe, tau1=0, tau2=0) as trace:
        assert np.array_equal(call(pipe, **more), plain)
    assert trace.summary.full == trace.summary.steps == 2 * STEPS
    assert np.array_equal(call(pipe, **more), plain)


def test_an_embedding_that_a_callback_replaces_reuses_nothing_of_the_one_before() -> None:
    """Img2Img sets no cache context, so nothing identifies the pass of the new embedding."""

    def swap(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": kwargs["prompt_embeds"].flip(1)} if step == 3 else kwargs

    pipe = make_pipeline("FluxImg2ImgPipeline")
    more = CFG | {"callback_on_step_end": swap, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with h2_cache(pipe.transformer, tau1=1e9, tau2=1e9) as trace:
        call(pipe, **more)
    passes = list(zip(trace.steps[0::2], trace.steps[1::2], strict=True))
    assert [uncond.full for _, uncond in passes] == [True] + [False] * (len(passes) - 1)
    assert [cond.full for cond, _ in passes] == [step in (0, 4) for step in range(len(passes))]
    assert {record.run for record in trace.steps} == {0}


def test_the_trace_knows_the_times_of_the_scheduler() -> None:
    pipe = make_pipeline("FluxPipeline")
    with h2_cache(pipe.transformer, CacheConfig()) as trace:
        call(pipe)
    times = pipe.scheduler.timesteps.tolist()
    assert [record.timestep for record in trace.steps] == pytest.approx(times, rel=1e-5)
    assert [record.sigma for record in trace.steps] == pytest.approx(pipe.scheduler.sigmas[:-1].tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["FluxPipeline", "FluxKontextPipeline", "Flux2KleinPipeline"])
@pytest.mark.parametrize("guards", [{"final_steps": 2}, {"warmup_steps": 2, "final_steps": 1, "max_consecutive": 1}])
def test_guards_hold_in_a_pipeline(name: str, guards: dict[str, int]) -> None:
    pipe = make_pipeline(name)
    with reference(pipe.transformer, Rules(1e9, 1e9, **guards), steps=STEPS) as decisions:
        wanted = call(pipe)
    with h2_cache(pipe, tau1=1e9, tau2=1e9, **guards) as trace:
        got = call(pipe)
    assert_same_decisions(trace.steps, decisions)
    assert np.array_equal(got, wanted)
    last = [record.structure.outcome.value for record in trace.steps][-guards["final_steps"] :]
    assert last == ["guarded"] * guards["final_steps"]


@pytest.mark.parametrize("guidance", [{}, CFG], ids=["no guidance", "true guidance"])
def test_the_last_steps_are_those_that_run_and_not_those_asked_for(guidance: dict[str, Any]) -> None:
    """At a strength of 0.5 image-to-image runs half of its steps."""
    pipe = make_pipeline("FluxImg2ImgPipeline")
    with h2_cache(pipe, tau1=1e9, tau2=1e9, final_steps=2) as trace:
        call(pipe, 6, strength=0.5, **guidance)
        call(pipe, 6, strength=0.7, **guidance)
    passes = 2 if guidance else 1
    for number, steps in ((0, 3), (1, 5)):
        outcomes = [record.structure.outcome.value for record in trace.steps if record.run == number]
        expected = ["computed"] + ["reused"] * (steps - 3) + ["guarded"] * 2
        assert outcomes == [outcome for outcome in expected for _ in range(passes)]


def test_a_pipeline_without_a_flux_transformer_is_refused_by_name() -> None:
    pipe = diffusers.DDPMPipeline(unet=torch.nn.Linear(1, 1), scheduler=diffusers.DDPMScheduler())
    with pytest.raises(CacheError, match="DDPMPipeline"), h2_cache(pipe, CacheConfig()):
        pass


def test_a_transformer_may_serve_two_pipelines() -> None:
    transformer = flux_transformer()
    text, image = flux_pipeline(transformer=transformer), flux_pipeline(FluxImg2ImgPipeline, transformer=transformer)
    with h2_cache(transformer, tau1=1e9, tau2=1e9) as trace:
        call(text, 3)
        call(image, 3)
        call(text, 3)
    assert [(record.run, record.step) for record in trace.steps] == [
        (run, step) for run in range(3) for step in range(3)
    ]
    assert [record.full for record in trace.steps] == [True, False, False] * 3


@pytest.fixture(scope="module")
def bundled() -> Any:
    return quiet(FluxPipeline.from_pretrained(BUNDLED).to(torch.float32))


def draw(pipe: Any, **more: Any) -> np.ndarray:
    size = {"height": 128, "width": 128, "max_sequence_length": 24, "num_inference_steps": 5, "guidance_scale": 1.0}
    return pipe(
        prompt="a cartoon of a cat", generator=torch.Generator().manual_seed(3), output_type="np", **size, **more
    ).images


@pytest.mark.parametrize("more", [{}, {"negative_prompt": "", "true_cfg_scale": 3.0}], ids=["plain", "true guidance"])
def test_the_bundled_model_decides_and_draws_as_the_paper_does(bundled: Any, more: dict[str, Any]) -> None:
    passes = ("cond", "uncond") if more else ("cond",)
    structure, detail = natural(bundled, passes, draw, **more)
    rules = Rules(between(structure, 0.4), between(detail, 0.6))
    assert len(kinds(compare(bundled, rules, passes, draw=draw, **more))) > 1


@pytest.mark.parametrize(("tau1", "tau2"), [(0.15, 0.22), (0.4, 0.0)])
def test_the_bundled_model_follows_the_paper_at_thresholds_that_people_give(
    bundled: Any, tau1: float, tau2: float
) -> None:
    compare(bundled, Rules(tau1, tau2), draw=draw)


def test_the_bundled_model_is_itself_when_the_cache_is_off(bundled: Any) -> None:
    plain = draw(bundled)
    with h2_cache(bundled, tau1=0, tau2=0):
        assert np.array_equal(draw(bundled), plain)
