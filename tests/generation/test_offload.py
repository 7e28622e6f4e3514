"""Offloading together with everything else that a picture is made with: the same picture as without, bit for bit.

The CPU acts as the GPU. Its hooks are the real ones: with accelerate's, weights that are not loaded are on the meta
device; with groups, no weight is a copy, so only what runs too early or not at all would be seen elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers.pipelines import pipeline_utils

import h2gen
from h2gen.models.memory import offload_groups
from tests import loras, small
from tests.loras import ATTENTION, FEED_FORWARD

CPU = torch.device("cpu")
GIVEN: dict[str, Any] = {"seed": 7, "size": 64, "steps": 3, "max_sequence_length": 16, "progress": False}
WAYS = {"uncached": {"no_cache": True}, "plan": {"plan": "FDS"}, "thresholds": {"tau1": 1e9, "tau2": 1e9}}
modes = pytest.mark.parametrize("mode", ["model", "group", "sequential"])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, a LoRA and pictures on the disk."""
    folder = tmp_path_factory.mktemp("models")
    pipe = small.flux_pipeline()
    pipe.save_pretrained(folder / "flux")
    for seed in (0, 1):
        delta = loras.delta(pipe.transformer, (*ATTENTION, *FEED_FORWARD), seed)
        loras.save(folder / f"style{seed}.safetensors", loras.in_layout("diffusers", delta))
    small.controlnet().save_pretrained(folder / "net")
    small.redux_prior().save_pretrained(folder / "redux")
    small.picture().save(folder / "one.png")
    for name, flow_map in (("flux3", False), ("flux3-distilled", True)):
        (folder / name).mkdir()
        small.save_flux3(small.flux3_pipeline(flow_map=flow_map), folder / name)
    return folder


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as diffusers' default device, on which it puts a model's parts again once a LoRA was loaded.

    diffusers calls it ``cpu:0``, and torch copies what is moved from ``cpu`` there: a weight would be no parameter any
    more, which accelerate needs.
    """
    monkeypatch.setattr(pipeline_utils, "get_device", lambda: "cpu:0")
    offload = accelerate.cpu_offload
    monkeypatch.setattr(accelerate, "cpu_offload", lambda part, _device, **more: offload(part, CPU, **more))


def offloaded(folder: Path, mode: str) -> Any:
    """A session whose parts are moved as ``apply_offload`` has a GPU's moved."""
    session = h2gen.load(str(folder), device="cpu", dtype="fp32")
    if mode == "group":
        offload_groups(session.pipe, CPU)
    else:
        getattr(session.pipe, f"enable_{mode}_cpu_offload")(device=CPU)
    session.options = replace(session.options, offload=mode)
    return session


def pixels(session: Any, **given: Any) -> Any:
    return np.asarray(session.generate("a cat", **GIVEN | given).image)


INPUTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a LoRA": {"lora": ["style0.safetensors:0.7"]},
    "guidance": {"cfg": 3.0, "negative": "a dog"},
    "a ControlNet": {"control": ["one.png"], "controlnet": ["net"]},
    "a ControlNet with a LoRA": {"control": ["one.png"], "controlnet": ["net"], "lora": ["style0.safetensors"]},
    "a picture": {"image": ["one.png:0.6"], "plan": "", "tau1": 1e9},
    "Redux": {"redux": ["one.png"], "redux_model": ["redux"]},
}


def whole(here: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The inputs with whole paths."""
    return {
        name: [str(here / each) for each in value] if isinstance(value, list) else value
        for name, value in given.items()
    }


@pytest.mark.slow
@modes
def test_every_input_makes_the_same_picture(here: Path, mode: str) -> None:
    plain, session = h2gen.load(str(here / "flux"), device="cpu", dtype="fp32"), offloaded(here / "flux", mode)
    for index, (name, given) in enumerate(INPUTS.items()):
        way, cache = ("thresholds", {}) if name == "a picture" else [*WAYS.items()][index % len(WAYS)]
        asked = whole(here, given) | cache
        assert np.array_equal(pixels(session, **asked), pixels(plain, **asked)), (name, way)


@pytest.mark.slow
@modes
def test_loras_come_and_go_between_pictures(here: Path, mode: str) -> None:
    plain, session = h2gen.load(str(here / "flux"), device="cpu", dtype="fp32"), offloaded(here / "flux", mode)
    for lora in (["style0.safetensors"], [], ["style1.safetensors:0.5"], ["style0.safetensors", "style1.safetensors"]):
        given = whole(here, {"lora": lora}) | {"plan": "FRS"}
        assert np.array_equal(pixels(session, **given), pixels(plain, **given)), lora


@pytest.mark.slow
@modes
@pytest.mark.parametrize("name", ["flux3", "flux3-distilled"])
def test_flux3_makes_the_same_picture(here: Path, mode: str, name: str) -> None:
    plain, session = h2gen.load(str(here / name), device="cpu", dtype="fp32"), offloaded(here / name, mode)
    image = {"image": [str(here / "one.png")]}
    for given in (WAYS["uncached"], WAYS["thresholds"], {**image, "plan": "FDR"}):
        assert np.array_equal(pixels(session, **given), pixels(plain, **given))
