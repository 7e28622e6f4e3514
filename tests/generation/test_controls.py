"""Control pictures, ControlNets and Redux through a session: plain diffusers bit for bit, and with the cache."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import h2gen
from h2gen.settings.edges import canny
from tests.small import (
    UNION,
    controlnet,
    flux_pipeline,
    mask,
    no_warning_of_diffusers_own_import,
    picture,
    quiet,
    redux_prior,
)

STEPS = 6
SMALL = {"layers": 2, "single_layers": 3}
COMMON = {"seed": 7, "size": 64, "steps": STEPS, "guidance": 3.5, "max_sequence_length": 16, "progress": False}
PLAIN = {
    "prompt": "a cat",
    "width": 64,
    "height": 64,
    "num_inference_steps": STEPS,
    "guidance_scale": 3.5,
    "max_sequence_length": 16,
    "output_type": "np",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and pictures on the disk."""
    folder = tmp_path_factory.mktemp("models")
    flux_pipeline(**SMALL).save_pretrained(folder / "flux")
    flux_pipeline(diffusers.FluxControlPipeline, **SMALL).save_pretrained(folder / "control")
    for name, net in {"a": controlnet(), "b": controlnet(seed=1), "union": controlnet(**UNION)}.items():
        net.save_pretrained(folder / name)
    redux_prior().save_pretrained(folder / "redux")
    picture().save(folder / "one.png")
    picture(200).save(folder / "two.png")
    mask().save(folder / "mask.png")
    return folder


@pytest.fixture(scope="module")
def sessions(here: Path) -> dict[str, Any]:
    return {name: h2gen.load(str(here / name), device="cpu", dtype="fp32") for name in ("flux", "control")}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def plain(folder: Path, name: str, **arguments: Any) -> Image.Image:
    """What diffusers itself makes, with parts loaded for it alone."""
    cls = getattr(diffusers, name)
    base = diffusers.DiffusionPipeline.from_pretrained(folder)
    parts = {**base.components, **({"controlnet": arguments.pop("nets")} if "nets" in arguments else {})}
    wanted = inspect.signature(cls.__init__).parameters
    pipe = quiet(cls(**{name: part for name, part in parts.items() if name in wanted}))
    pixels = pipe(**PLAIN | arguments, generator=generator()).images
    return pipe.image_processor.numpy_to_pil(pixels)[0]


CHANGE = {"image": picture(200), "strength": 0.5}
WAYS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "one": ("flux", "FluxControlNetPipeline", {"controlnet": "a:0.6"}, {"controlnet_conditioning_scale": 0.6}),
    "two": (
        "flux",
        "FluxControlNetPipeline",
        {"controlnet": ["a:0.6", "b:0.3"], "control": ["one.png", "canny:two.png"]},
        {"controlnet_conditioning_scale": [0.6, 0.3], "control_image": [picture(), canny(picture(200))]},
    ),
    "union": (
        "flux",
        "FluxControlNetPipeline",
        {"controlnet": "union", "control": "depth:one.png"},
        {"control_mode": 2},
    ),
    "union twice": (
        "flux",
        "FluxControlNetPipeline",
        {"controlnet": "union:0.5", "control": ["depth:one.png", "pose:two.png"]},
        {
            "control_image": [picture(), picture(200)],
            "controlnet_conditioning_scale": [0.5, 0.5],
            "control_mode": [2, 4],
        },
    ),
    "true guidance": (
        "flux",
        "FluxControlNetPipeline",
        {"controlnet": "a", "cfg": 2.0, "negative": "a dog"},
        {"true_cfg_scale": 2.0, "negative_prompt": "a dog"},
    ),
    "image": ("flux", "FluxControlNetImg2ImgPipeline", {"controlnet": "a", "image": "two.png:0.5"}, CHANGE),
    "inpaint": (
        "flux",
        "FluxControlNetInpaintPipeline",
        {"controlnet": "a", "image": "two.png:0.5", "mask": "mask.png"},
        CHANGE | {"mask_image": mask()},
    ),
    "control": ("control", "FluxControlPipeline", {}, {}),
    "control canny": (
        "control",
        "FluxControlPipeline",
        {"control": "canny:one.png"},
        {"control_image": canny(picture())},
    ),
    "control image": ("control", "FluxControlImg2ImgPipeline", {"image": "two.png:0.5"}, CHANGE),
    "control inpaint": (
        "control",
        "FluxControlInpaintPipeline",
        {"image": "two.png:0.5", "mask": "mask.png"},
        CHANGE | {"mask_image": mask()},
    ),
}


WITH_REDUX = {"flux": "FluxPipeline", "control": "FluxControlPipeline"}


def files(here: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The settings with whole paths."""

    def whole(value: str) -> str:
        kind, _, rest = value.rpartition(":") if value.startswith(("canny", "depth", "pose")) else ("", "", value)
        return f"{kind}:{here / rest}" if kind else str(here / rest)

    names = ("control", "controlnet", "image", "mask", "redux", "redux_model")
    return {
        key: [whole(each) for each in ([value] if isinstance(value, str) else value)] if key in names else value
        for key, value in given.items()
    }


@pytest.mark.parametrize("way", WAYS)
def test_the_cache_off_is_plain_diffusers_bit_for_bit_and_on_it_decides(
    way: str, here: Path, sessions: dict[str, Any]
) -> None:
    model, name, given, arguments = WAYS[way]
    session, given = sessions[model], COMMON | files(here, {"control": "one.png"} | given)
    with no_warning_of_diffusers_own_import():
        folders = [each.rpartition(":")[0] if each[-1].isdigit() else each for each in given.get("controlnet", ())]
        nets = [diffusers.FluxControlNetModel.from_pretrained(folder) for folder in folders]
    if nets:
        nets *= len(given["control"]) // len(nets)
        arguments = arguments | {"nets": nets[0] if len(nets) == 1 else nets}
    wanted = plain(here / model, name, **{"control_image": picture()} | arguments)
    off = session.generate("a cat", no_cache=True, **given)
    assert np.array_equal(np.asarray(off.image), np.asarray(wanted))
    never = session.generate("a cat", tau1=1e-9, tau2=1e-9, **given)
    assert np.array_equal(np.asarray(never.image), np.asarray(wanted))
    plan = "FSDFSF"[-never.settings.steps_run :]
    skipped = session.generate("a cat", plan="F" + plan[1:], **given)
    assert skipped.trace.summary.skipped == plan[1:].count("S") * (2 if "cfg" in given else 1)
    always = session.generate("a cat", tau1=1e9, tau2=1e9, **given)
    assert always.trace.summary.full < always.trace.summary.steps
    session.generate("a cat", tolerance=0.02, **given)
    again = session.generate("a cat", no_cache=True, **given)
    assert np.array_equal(np.asarray(again.image), np.asarray(wanted))


@pytest.mark.parametrize("model", WITH_REDUX)
@pytest.mark.parametrize(("scale", "weight"), [("", 1.0), (":0.5", 0.5)])
def test_redux_adds_its_tokens_to_the_prompt_as_diffusers_does(
    model: str, scale: str, weight: float, here: Path, sessions: dict[str, Any]
) -> None:
    given = COMMON | files(here, {"redux": f"one.png{scale}", "redux_model": "redux"})
    given |= files(here, {"control": "two.png"}) if model == "control" else {}
    prior, pipe = redux_prior(), quiet(diffusers.DiffusionPipeline.from_pretrained(here / model))
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt("a cat", None, max_sequence_length=16)
        tokens = weight * prior.image_embedder(prior.encode_image(picture(), "cpu", 1)).image_embeds
    more = {"control_image": picture(200)} if model == "control" else {}
    whole = {"prompt_embeds": torch.cat([text, tokens], 1), "pooled_prompt_embeds": pooled}
    pixels = pipe(**PLAIN | {"prompt": None} | whole | more, generator=generator()).images
    off = sessions[model].generate("a cat", no_cache=True, **given)
    assert np.array_equal(np.asarray(off.image), np.asarray(pipe.image_processor.numpy_to_pil(pixels)[0]))
    if weight == 1.0 and model == "flux":  # diffusers' own way
        for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
            prior.register_modules(**{name: getattr(pipe, name)})
        own = prior(picture(), prompt_embeds=text, pooled_prompt_embeds=pooled)
        assert torch.equal(own.prompt_embeds, whole["prompt_embeds"])
        assert torch.equal(own.pooled_prompt_embeds, pooled)
    cached = sessions[model].generate("a cat", plan="FSDFSF", **given)
    assert cached.trace.summary.skipped == 2
    without = {key: value for key, value in given.items() if not key.startswith("redux")}
    assert not np.array_equal(
        np.asarray(sessions[model].generate("a cat", no_cache=True, **without).image), np.asarray(off.image)
    )


def test_pictures_of_a_batch_follow_the_same_control_picture(here: Path, sessions: dict[str, Any]) -> None:
    given = files(here, {"control": "depth:one.png", "controlnet": "union", "image": "two.png:0.5"})
    session = sessions["flux"]
    own = {key: value for key, value in COMMON.items() if key != "progress"}
    alone = [
        session.settings(prompt, **{**own, **given, "seed": seed}, no_cache=True)
        for seed, prompt in enumerate(("a cat", "a dog"))
    ]
    together = session.run_together(alone)
    for settings, result in zip(alone, together, strict=True):
        single = np.asarray(session.run(settings).image, dtype=int)
        assert abs(np.asarray(result.image, dtype=int) - single).max() <= 1
