"""Input pictures in a session, or none: each pipeline is called as by hand, in batches too; no run leaves anything."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from h2gen.cache import CacheConfig
from h2gen.errors import SettingError
from h2gen.families import family_of
from h2gen.families.token_grid import own_tokens
from h2gen.generation.session import Session
from h2gen.models.catalogue import Checkpoint, ModelDefaults
from h2gen.settings.pictures import PictureRule
from h2gen.settings.values import OFF, Settings
from tests import small

SMALL = {"layers": 2, "single_layers": 2}
ONE, OTHER = small.picture(), small.picture(200)
MASK = small.mask()
MAKERS: Mapping[str, Callable[[], Any]] = {
    "FluxPipeline": lambda: small.flux_pipeline(**SMALL),
    "ChromaPipeline": lambda: small.chroma_pipeline(**SMALL),
    "FluxFillPipeline": lambda: small.flux_pipeline(diffusers.FluxFillPipeline, **SMALL),
    "FluxKontextPipeline": lambda: small.flux_pipeline(diffusers.FluxKontextPipeline, **SMALL),
    "Flux2KleinPipeline": lambda: small.flux2_klein_pipeline(**SMALL),
    "Flux2Pipeline": lambda: small.flux2_pipeline(**SMALL),
    "QwenImagePipeline": lambda: small.qwen_image_pipeline(layers=4),
    "ZImagePipeline": lambda: small.z_image_pipeline(layers=4),
}
LENGTHS = {"Flux2Pipeline": 256, "Flux2KleinPipeline": 64, "QwenImagePipeline": 256, "ZImagePipeline": 64}
"""Text tokens, where the chat template alone needs many."""
AREA = {"max_area": small.SIZE**2}
# The loaded pipeline, pictures, strength, mask, the pipeline of the task, and what it is called with by hand.
CASES: Mapping[str, tuple[str, list[Image.Image], float | None, bool, str, dict[str, Any]]] = {
    "img2img": ("FluxPipeline", [ONE], 0.6, False, "FluxImg2ImgPipeline", {"image": ONE, "strength": 0.6}),
    "inpaint": (
        "FluxPipeline", [ONE], 0.85, True, "FluxInpaintPipeline", {"image": ONE, "mask_image": MASK, "strength": 0.85},
    ),
    "chroma": ("ChromaPipeline", [ONE], 0.5, False, "ChromaImg2ImgPipeline", {"image": ONE, "strength": 0.5}),
    "chroma inpaint": (
        "ChromaPipeline", [ONE], 1.0, True, "ChromaInpaintPipeline",
        {"image": ONE, "mask_image": MASK, "strength": 1.0},
    ),
    "fill": ("FluxFillPipeline", [ONE], 1.0, True, "FluxFillPipeline", {"image": ONE, "mask_image": MASK}),
    "kontext": ("FluxKontextPipeline", [ONE], None, False, "FluxKontextPipeline", {"image": ONE, **AREA}),
    "kontext inpaint": (
        "FluxKontextPipeline", [ONE, OTHER], 0.8, True, "FluxKontextInpaintPipeline",
        {"image": ONE, "image_reference": OTHER, "mask_image": MASK, "strength": 0.8, "_auto_resize": False, **AREA},
    ),
    "klein": ("Flux2KleinPipeline", [ONE, OTHER], None, False, "Flux2KleinPipeline", {"image": [ONE, OTHER]}),
    "klein inpaint": (
        "Flux2KleinPipeline", [ONE], 0.5, True, "Flux2KleinInpaintPipeline",
        {"image": ONE, "mask_image": MASK, "strength": 0.5},
    ),
    "flux2": ("Flux2Pipeline", [ONE, OTHER], None, False, "Flux2Pipeline", {"image": [ONE, OTHER]}),
    "qwen": ("QwenImagePipeline", [ONE], 0.6, False, "QwenImageImg2ImgPipeline", {"image": ONE, "strength": 0.6}),
    "qwen inpaint": (
        "QwenImagePipeline", [ONE], 0.85, True, "QwenImageInpaintPipeline",
        {"image": ONE, "mask_image": MASK, "strength": 0.85},
    ),
    "z-image": ("ZImagePipeline", [ONE], 0.6, False, "ZImageImg2ImgPipeline", {"image": ONE, "strength": 0.6}),
    "z-image inpaint": (
        "ZImagePipeline", [ONE], 0.85, True, "ZImageInpaintPipeline",
        {"image": ONE, "mask_image": MASK, "strength": 0.85},
    ),
    "text": ("FluxPipeline", [], None, False, "FluxPipeline", {}),
    "chroma text": ("ChromaPipeline", [], None, False, "ChromaPipeline", {}),
    "kontext text": ("FluxKontextPipeline", [], None, False, "FluxKontextPipeline", AREA),
    "klein text": ("Flux2KleinPipeline", [], None, False, "Flux2KleinPipeline", {}),
    "flux2 text": ("Flux2Pipeline", [], None, False, "Flux2Pipeline", {}),
    "qwen text": ("QwenImagePipeline", [], None, False, "QwenImagePipeline", {}),
    "z-image text": ("ZImagePipeline", [], None, False, "ZImagePipeline", {}),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pipeline_flux_kontext", "pipeline_flux_kontext_inpaint"):
        name = f"diffusers.pipelines.flux.{module}.PREFERRED_KONTEXT_RESOLUTIONS"
        monkeypatch.setattr(name, [(small.SIZE, small.SIZE)])


@functools.cache
def session_of(name: str) -> Session:
    return new_session(name)


def new_session(name: str) -> Session:
    return Session(MAKERS[name](), Checkpoint("mine", "folder", Path(), None, ModelDefaults()))


def settings_of(case: str, *, steps: int = 5, **more: Any) -> Settings:
    name, pictures, strength, mask, *_ = CASES[case]
    files = PictureRule().resolve("--image", pictures) if pictures else ()
    return Settings(
        "a cat", 7, small.SIZE, small.SIZE, steps,
        guidance=1.0,
        max_sequence_length=LENGTHS.get(name, 16),
        image=(*(replace(file, scale=strength) for file in files[:1]), *files[1:]),
        mask=PictureRule().resolve("--mask", [MASK]) if mask else (),
        **{"cache": OFF, **more},
    )  # fmt: skip


def pixels(result: Any) -> np.ndarray:
    return np.asarray(result.image).astype(int)


def by_hand(case: str, seed: int = 7) -> np.ndarray:
    name, *_, task, arguments = CASES[case]
    pipe, cls = session_of(name).pipe, getattr(diffusers, task)
    known = {**pipe.config, **pipe.components}
    own = small.quiet(cls(**{key: known[key] for key in inspect.signature(cls.__init__).parameters if key in known}))
    guidance = {"QwenImagePipeline": {"true_cfg_scale": 1.0}, "ZImagePipeline": {"guidance_scale": 0.0}}
    size = {"height": small.SIZE, "width": small.SIZE, **guidance.get(name, {"guidance_scale": 1.0})}
    size["max_sequence_length"] = LENGTHS.get(name, 16)
    generator = torch.Generator().manual_seed(seed)
    (image,) = own(prompt="a cat", num_inference_steps=5, generator=generator, **size, **arguments).images
    return np.asarray(image).astype(int)


@every_case
def test_without_a_cache_it_is_diffusers_pipeline_called_by_hand_bit_for_bit(case: str) -> None:
    result = session_of(CASES[case][0]).run(settings_of(case))
    assert result.image.size == (small.SIZE, small.SIZE)
    assert np.array_equal(pixels(result), by_hand(case))


@every_case
def test_a_picture_is_the_same_in_a_batch(case: str) -> None:
    session, one = session_of(CASES[case][0]), settings_of(case)
    other = replace(one, seed=8)
    alone = [pixels(session.run(each)) for each in (one, other)]
    together = [pixels(each) for each in session.run_together([one, other])]
    assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) <= 1
    assert np.abs(alone[0] - alone[1]).max() > 8, "the seeds matter"


@every_case
@pytest.mark.parametrize(
    "cache",
    [
        CacheConfig(1e9, 1e9, final_steps=1),
        CacheConfig(0, 0, tolerance=1e9),
        CacheConfig(0, 0, plan="FSFSFSFF"),
        CacheConfig(0, 0),
    ],
    ids=["thresholds", "tolerance", "plan", "off"],
)
def test_a_schedule_that_begins_in_its_midst_is_followed_to_its_end(case: str, cache: CacheConfig) -> None:
    settings = settings_of(case, cache=cache, steps=8 if cache.enabled else 5)
    result = session_of(CASES[case][0]).run(settings, on_step=lambda _record: None)
    steps = result.trace.steps
    assert [record.step for record in steps] == list(range(settings.steps_run))
    assert len(steps) == settings.passes and steps[0].full and steps[-1].full
    assert any(not record.full for record in steps) == cache.enabled
    if not cache.enabled:
        assert np.array_equal(pixels(result), by_hand(case))


@pytest.mark.parametrize("case", ["kontext", "klein", "flux2"])
def test_references_are_not_the_pictures_own_tokens(case: str) -> None:
    session, seen = session_of(CASES[case][0]), []

    def look(_model: Any, _args: Any, given: dict[str, Any]) -> None:
        inputs = family_of(session.pipe.transformer).pass_inputs(given)
        tokens = inputs.latents.shape[1]
        seen.append((tokens, float(own_tokens(inputs.image_ids, tokens, torch.device("cpu")).sum())))

    handle = session.pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        session.run(settings_of(case, steps=1))
    finally:
        handle.remove()
    own = (small.SIZE // 16) ** 2
    assert seen == [(own * (1 + len(CASES[case][1])), own)]


@pytest.mark.parametrize("case", ["img2img", "kontext", "klein"])
def test_nothing_of_the_picture_before_is_left(case: str) -> None:
    cache = CacheConfig(0, 0, plan="FRSRF")
    settings = settings_of(case, cache=cache)
    fresh = pixels(new_session(CASES[case][0]).run(settings))
    session = new_session(CASES[case][0])
    (black,) = PictureRule().resolve("--image", Image.new("RGB", (small.SIZE, small.SIZE)))
    before = session.run(replace(settings, image=(replace(black, scale=settings.image[0].scale),)))
    assert not np.array_equal(pixels(before), fresh)
    assert np.array_equal(pixels(session.run(settings)), fresh)
    text = replace(settings, image=(), mask=())
    session.run(text)
    assert np.array_equal(pixels(session.run(settings)), fresh)


def test_text_to_image_is_called_as_before_and_builds_no_other_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    session = new_session("FluxPipeline")
    plain = replace(settings_of("img2img"), image=())
    assert session.pipeline(plain) is session.pipe
    given: list[dict[str, Any]] = []
    original = type(session.pipe).__call__
    monkeypatch.setattr(
        type(session.pipe), "__call__", lambda pipe, **more: given.append(more) or original(pipe, **more)
    )
    session.run(plain)
    assert {"image", "mask_image", "strength", "max_area"}.isdisjoint(given[0])


def test_a_loaded_model_says_what_it_cannot_do() -> None:
    with pytest.raises(SettingError, match="'mine' cannot inpaint, so it takes no --mask; these models can: tiny"):
        session_of("Flux2Pipeline").run(replace(settings_of("flux2"), mask=settings_of("inpaint").mask))
    with pytest.raises(SettingError, match="give the picture with --image and the part with --mask"):
        session_of("FluxFillPipeline").run(replace(settings_of("fill"), image=(), mask=()))


@pytest.mark.parametrize("solver", ["unipc", "heun", "dpm++"])
@pytest.mark.parametrize("case", ["img2img", "inpaint"])
def test_other_solvers_begin_in_the_midst_too(case: str, solver: str) -> None:
    settings = settings_of(case, solver=solver, steps=6)
    result = session_of(CASES[case][0]).run(settings, on_step=lambda _record: None)
    assert len(result.trace.steps) == settings.passes
    own = pixels(session_of(CASES[case][0]).run(replace(settings, solver="own")))
    assert 0 < np.abs(pixels(result) - own).mean() < 32


def test_a_stop_comes_after_the_step_whatever_the_pipeline() -> None:
    session, settings = session_of("FluxPipeline"), settings_of("img2img", cache=CacheConfig(0.1, 0.1))
    with pytest.raises(KeyboardInterrupt):
        session.run(settings, on_step=lambda record: session.interrupt() if record.step == 0 else None)
    assert pixels(session.run(settings)).any()
