"""Control LoRAs: a text-to-image model follows a picture while one is loaded, and is as before without it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers as convert
from safetensors.torch import load_file

import h2gen
from h2gen.errors import H2GenError
from h2gen.models import compiling
from h2gen.models.adapters import Adapters
from h2gen.models.lora_names import converted_names
from tests import loras
from tests.cli.programs import h2gen as program
from tests.small import (
    controlnet,
    flux2_klein_pipeline,
    flux_pipeline,
    mask,
    no_warning_of_diffusers_own_import,
    picture,
    quiet,
)

LAYERS, SINGLE = 3, 4
LAST = "final_layer.adaLN_modulation.1.lora_A.weight"
COMMON = {"seed": 7, "size": 64, "steps": 6, "guidance": 3.5, "max_sequence_length": 16, "progress": False}


@pytest.fixture(autouse=True)
def small_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers converts the original names for 19 + 38 blocks of 3072 only; use the small model's numbers instead."""
    ours = {19: LAYERS, 38: SINGLE, 3072: 32}
    consts = tuple(ours.get(const, const) if type(const) is int else const for const in convert.__code__.co_consts)
    monkeypatch.setattr(convert, "__code__", convert.__code__.replace(co_consts=consts))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pipe = flux_pipeline(layers=LAYERS, single_layers=SINGLE)
    pipe.save_pretrained(folder / "flux")
    flux2_klein_pipeline().save_pretrained(folder / "klein")
    transformer = pipe.transformer
    loras.save(folder / "original.safetensors", loras.control_lora(transformer))
    loras.save(folder / "diffusers.safetensors", loras.control_lora(transformer, 1, original=False))
    style = loras.in_layout("diffusers", loras.delta(transformer, loras.ATTENTION, 5))
    loras.save(folder / "style.safetensors", style)
    controlnet().save_pretrained(folder / "net")
    picture().save(folder / "one.png")
    return folder


@pytest.fixture
def session(here: Path) -> Any:
    return h2gen.load(str(here / "flux"), device="cpu", dtype="fp32")


def plain(here: Path, scales: dict[str, float], pipeline: str = "FluxControlPipeline", **more: Any) -> np.ndarray:
    """What diffusers makes of the picture, with LoRAs by name and scale, and further arguments."""
    with no_warning_of_diffusers_own_import():
        pipe = quiet(getattr(diffusers, pipeline).from_pretrained(here / "flux"))
    for name in scales:
        tensors = load_file(here / f"{name}.safetensors")
        if LAST in tensors:  # diffusers exchanges its halves, which is wrong; see below
            tensors[LAST] = exchanged(tensors[LAST])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # it means a second LoRA
            pipe.load_lora_weights(tensors, adapter_name=name)
    pipe.set_adapters([*scales], [*scales.values()])
    given = {"width": 64, "height": 64, "num_inference_steps": 6, "guidance_scale": 3.5, "max_sequence_length": 16}
    generator = torch.Generator().manual_seed(7)
    return np.asarray(pipe("a cat", control_image=picture(), generator=generator, **given, **more).images[0])


def made(session: Any, **given: Any) -> np.ndarray:
    return np.asarray(session.generate("a cat", **COMMON | given).image)


def exchanged(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([*tensor.chunk(2)][::-1])


def test_the_last_modulation_is_the_one_of_the_file(here: Path, session: Any) -> None:
    """diffusers has scale and shift in the other order, which is a matter of the second factor alone."""
    tensors = load_file(here / "original.safetensors")
    up = tensors[LAST.replace("lora_A", "lora_B")]
    converted, dropped, _ = converted_names(session.pipe, here / "original.safetensors")
    assert dropped == []
    ours = [converted[f"transformer.norm_out.linear.lora_{factor}.weight"] for factor in "BA"]
    assert torch.equal(ours[0] @ ours[1], exchanged(up) @ tensors[LAST])


@pytest.mark.parametrize("name", ["original", "diffusers"])
def test_pictures_are_those_of_diffusers_and_the_model_is_as_before_without_it(
    name: str, here: Path, session: Any
) -> None:
    style = str(here / "style.safetensors")
    before, styled = made(session, no_cache=True), made(session, lora=style, no_cache=True)
    weights = {
        key: tensor.clone() for key, tensor in session.pipe.transformer.state_dict().items() if "lora" not in key
    }
    given = {"lora": f"{here / name}.safetensors:0.8", "control": str(here / "one.png")}
    assert np.array_equal(made(session, no_cache=True, **given), plain(here, {name: 0.8}))
    assert np.array_equal(made(session, tau1=1e-9, tau2=1e-9, **given), plain(here, {name: 0.8}))
    skipped = session.generate("a cat", plan="FSDFSF", **COMMON, **given)
    assert skipped.trace.summary.skipped == 2
    both = given | {"lora": [given["lora"], style]}
    assert np.array_equal(made(session, no_cache=True, **both), plain(here, {name: 0.8, "style": 1.0}))
    assert np.array_equal(made(session, no_cache=True, **given), plain(here, {name: 0.8}))
    assert np.array_equal(made(session, no_cache=True), before)
    now = session.pipe.transformer.state_dict()
    assert now.keys() == {key.replace(".base_layer", "") for key in weights}
    assert all(torch.equal(now[key.replace(".base_layer", "")], tensor) for key, tensor in weights.items())
    assert session.pipe.transformer.config.in_channels == 16
    assert np.array_equal(made(session, lora=style, no_cache=True), styled)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_the_layer_that_is_put_back_goes_where_the_transformer_is_by_now(here: Path, session: Any) -> None:
    settings = session.settings("a cat", lora=str(here / "diffusers.safetensors"), control=str(here / "one.png"))
    adapters = Adapters()
    adapters.use(session.pipe, settings.lora, "text")
    session.pipe.transformer.to("meta")  # as to a GPU, when its turn came
    adapters.use(session.pipe, (), "text")
    assert {each.device.type for each in session.pipe.transformer.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_picture_or_a_mask_beside_it_gives_the_pictures_of_diffusers(name: str, here: Path, session: Any) -> None:
    mask().save(here / "mask.png")
    given = {"lora": str(here / "original.safetensors"), "control": str(here / "one.png")}
    given |= {"image": f"{here / 'one.png'}:0.6"} | ({"mask": str(here / "mask.png")} if name == "mask" else {})
    pipeline = {"image": "FluxControlImg2ImgPipeline", "mask": "FluxControlInpaintPipeline"}[name]
    more = {"image": picture(), "strength": 0.6} | ({"mask_image": mask()} if name == "mask" else {})
    wanted = plain(here, {"original": 1.0}, pipeline, **more)
    assert np.array_equal(made(session, no_cache=True, **given), wanted)
    assert np.array_equal(made(session, tau1=1e-9, tau2=1e-9, **given), wanted)
    assert session.generate("a cat", plan="FSSF", **COMMON, **given).trace.summary.skipped == 2


@pytest.mark.slow
def test_with_compiled_blocks_it_comes_and_goes(here: Path, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # it rounds like blocks that are not compiled
    torch._dynamo.reset()
    compiled = h2gen.load(str(here / "flux"), device="cpu", dtype="fp32", compile=True)
    given = {"lora": str(here / "diffusers.safetensors"), "control": str(here / "one.png")}
    counted = torch._dynamo.utils.counters["stats"]
    graphs = []
    for more in (given, {}, given, {}):
        assert np.array_equal(made(compiled, plan="FSDF", steps=4, **more), made(session, plan="FSDF", steps=4, **more))
        graphs.append(counted["unique_graphs"])
    assert 0 < graphs[0] < graphs[1] == graphs[-1]


def test_one_replaces_another(here: Path, session: Any) -> None:
    control = str(here / "one.png")
    for name in ("original", "diffusers", "original"):
        found = made(session, lora=f"{here / name}.safetensors", control=control, no_cache=True)
        assert np.array_equal(found, plain(here, {name: 1.0}))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({}, "follows a picture; give it with --control FILE"),
    "a ControlNet": ({"control": "one.png", "controlnet": "net"}, "cannot be used together; give one"),
    "true guidance": ({"control": "one.png", "cfg": 2.0}, "cfg is 2, but .* has no true guidance"),
    "two": ({"control": "one.png", "lora": ["original.safetensors", "diffusers.safetensors"]}, "only one can be used"),
    "another family": ({"control": "one.png", "model": "klein"}, "follows no --control picture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_with_one_is_refused_in_one_line(name: str, here: Path, session: Any) -> None:
    given, words = REFUSED[name]
    given = {"lora": "original.safetensors", **given}
    if given.pop("model", ""):
        session = h2gen.load(str(here / "klein"), device="cpu", dtype="fp32")
    with pytest.raises(H2GenError, match=words) as caught:
        session.generate(
            "a cat",
            **{
                key: value
                if key == "cfg"
                else [str(here / each) for each in ([value] if isinstance(value, str) else value)]
                for key, value in given.items()
            },
            **{key: value for key, value in COMMON.items() if key != "guidance"},
        )
    assert "\n" not in str(caught.value)


def test_offloading_that_holds_the_layers_is_refused(here: Path, session: Any) -> None:
    session.options = replace(session.options, offload="sequential")
    with pytest.raises(H2GenError, match="cannot be used with --offload sequential; use none, text or model"):
        made(session, lora=str(here / "diffusers.safetensors"), control=str(here / "one.png"))


def test_it_is_recorded_shown_and_replayed(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--lora", f"{here / 'diffusers.safetensors'}:0.8", "--control", str(here / "one.png")]
    model = ["--model", str(here / "flux"), "-q"]
    small = [
        "--seed",
        "7",
        "--steps",
        "4",
        "--size",
        "64",
        "--max-sequence-length",
        "16",
        "--plan",
        "FSFF",
        "-o",
        "a.png",
    ]
    done = program("a cat", *model, *small, *given)
    assert done.returncode == 0, done.stderr
    assert "diffusers.safetensors:0.8" in program("info", "a.png").stdout
    again = program("replay", "a.png", *model, *given, "-o", "b.png")
    assert again.returncode == 0, again.stderr
    pixels = [np.asarray(diffusers.utils.load_image(name)) for name in ("a.png", "b.png")]
    assert np.array_equal(*pixels)
    assert "Control LoRA" in program("models", "show", str(here / "diffusers.safetensors")).stdout
