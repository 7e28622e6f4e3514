"""Control pictures, ControlNets and Redux on the command line: used, recorded, replayed by hash, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from h2gen import load
from h2gen.errors import UsageError
from h2gen.generation.shell import ShellState
from h2gen.settings.editing import check_inputs
from h2gen.settings.resolve import request_from
from tests.checkpoints import save_single
from tests.cli.programs import h2gen
from tests.small import UNION, controlnet, flux_pipeline, picture, redux_prior


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    flux_pipeline(layers=2, single_layers=3).save_pretrained(folder / "flux")
    flux_pipeline(diffusers.FluxControlPipeline, layers=2, single_layers=3).save_pretrained(folder / "follows")
    save_single(controlnet(), folder / "net.safetensors")
    save_single(controlnet(layers=1), folder / "other.safetensors")
    controlnet(**UNION).save_pretrained(folder / "union")
    redux_prior().save_pretrained(folder / "redux")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    picture().resize((128, 96)).save("photo.png")
    picture(9).save("depth.png")
    return tmp_path


def making(model: Path) -> list[str]:
    return ["--model", str(model), "--steps", "4", "--seed", "7", "--max-sequence-length", "16", "--size", "64", "-q"]


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path.strip()))


def test_a_picture_records_what_it_followed_and_is_replayed_from_the_same_files(models: Path) -> None:
    given = ["--control", "depth:depth.png", "--controlnet", f"{models / 'union'}:0.6"]
    given += ["--redux", "photo.png", "--redux-model", str(models / "redux")]
    made = h2gen("a cat", *making(models / "flux"), *given, "--plan", "FSFF", "--json")
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    settings = found["settings"]
    assert [(each["name"], each.get("kind"), each.get("scale")) for each in settings["control"]] == [
        ("depth.png", "depth", None)
    ]
    assert [(each["name"], each["scale"]) for each in settings["controlnet"]] == [("union", 0.6)]
    assert [(each["name"], each["scale"]) for each in settings["redux"]] == [("photo.png", 1.0)]
    assert [each["name"] for each in settings["redux_model"]] == ["redux"]
    assert str(models) not in json.dumps(settings)
    shown = h2gen("info", found["path"])
    assert "depth:depth.png" in shown.stdout and "union:0.6" in shown.stdout
    here = ["--model", str(models / "flux"), "-q"]
    refused = h2gen("replay", found["path"], *here)
    lines = refused.stderr.splitlines()
    assert refused.returncode == 2 and len(lines) == 4 and all("give the file again with" in line for line in lines)
    assert "'depth.png'" in refused.stderr and "--control" in refused.stderr
    Path("depth.png").rename("moved.png")
    again = ["--control", "moved.png", "--controlnet", str(models / "union")]
    again += ["--redux", "photo.png", "--redux-model", str(models / "redux")]
    replayed = h2gen("replay", found["path"], *here, *again)
    assert replayed.returncode == 0, replayed.stderr
    assert np.array_equal(pixels(replayed.stdout), pixels(found["path"]))


def test_prompt_files_give_each_prompt_its_own_control_picture(models: Path) -> None:
    Path("prompts.jsonl").write_text(
        "\n".join(
            json.dumps({"prompt": prompt, "control": file, "controlnet": str(models / "net.safetensors")})
            for prompt, file in (("a cat", "depth.png"), ("a dog", "canny:photo.png"), ("a fox", "depth.png"))
        )
    )
    made = h2gen("batch", "prompts.jsonl", *making(models / "flux"), "--out", "out")
    assert made.returncode == 0, made.stderr
    assert len(list(Path("out").glob("*.png"))) == 3


def test_a_control_picture_gives_the_shape_unless_a_size_does(models: Path) -> None:
    given = {"model": str(models / "follows"), "control": "canny:photo.png"}
    assert request_from("a cat", [("option", given)]).settings.width == 128
    sized = request_from("a cat", [("option", {**given, "size": "64x64"})])
    assert "'photo.png' (128x96) is cropped and resized to 64x64." in sized.notices


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"controlnet": "net.safetensors"}, "--controlnet needs a picture to follow; also give --control"),
    "too many nets": (
        {"control": "depth.png", "controlnet": ["net.safetensors", "union"]},
        "There are 2 ControlNets and 1 control pictures",
    ),
    "mixed nets": (
        {"control": ["depth.png", "photo.png"], "controlnet": ["net.safetensors", "other.safetensors"]},
        "cannot be used together: one has 2 double-stream blocks and another 1",
    ),
    "no kind": (
        {"control": "depth.png", "controlnet": "union"},
        "'union' is a union, and --control 'depth.png' has no kind; put one of its kinds before the file",
    ),
    "unknown kind": (
        {"control": "hed:depth.png", "controlnet": "union"},
        "no file 'hed:depth.png'; check the path. A kind of control picture is one of canny, edges, tile",
    ),
    "not of FLUX.1": (
        {"model": "flux2-dev", "control": "depth.png", "controlnet": "net.safetensors"},
        "'flux2-dev' takes no --controlnet; these models take one: tiny, dev",
    ),
    "another size": (
        {"model": "dev", "control": "depth.png", "controlnet": "net.safetensors"},
        "'net.safetensors' does not fit the model 'dev': it has 32 channels of a token inside",
    ),
    "two for a control model": (
        {"model": "follows", "control": ["depth.png", "photo.png"]},
        "--control is given twice; ",
    ),
    "guidance from a picture": (
        {"control": "depth.png", "controlnet": "net.safetensors", "image": "photo.png", "cfg": 2.0},
        "cfg is 2, but with --image a ControlNet has no true guidance",
    ),
    "Redux of another size": (
        {"model": "dev", "redux": "depth.png", "redux_model": "redux"},
        "it makes text tokens of 32 channels, and the model takes 4096",
    ),
    "too small for Redux": ({"redux": "depth.png"}, "flux' does not support --redux; these models do: dev"),
    "Redux with FLUX.2": (
        {"model": "klein-4b", "redux": "depth.png", "redux_model": "redux"},
        "'klein-4b' does not support --redux; these models do: dev, schnell",
    ),
    "no Redux": ({"model": "dev", "redux": "depth.png"}, "'black-forest-labs/FLUX.1-Redux-dev' is not on this machine"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(name: str, models: Path) -> None:
    given, message = REFUSED[name]

    def whole(value: str) -> str:
        return str(models / value) if (models / value).exists() else value

    given = {"model": "flux"} | given
    given = {
        key: [whole(each) for each in value] if isinstance(value, list) else whole(value) if key != "cfg" else value
        for key, value in given.items()
    }
    with pytest.raises(UsageError) as caught:
        request_from("a cat", [("option", given)])
    assert message in str(caught.value).replace(str(models) + "/", "") and "\n" not in str(caught.value)


def test_a_shell_takes_a_control_picture_and_then_its_controlnet(models: Path) -> None:
    net = models / "net.safetensors"
    lines = [":set control depth.png", "a cat", f":set controlnet {net}:0.5", "a cat", ":unset controlnet", ":quit"]
    made = h2gen("shell", *making(models / "flux")[:-3], "--size", "64", input="\n".join(lines))
    assert len([line for line in made.stdout.splitlines() if line.endswith(".png")]) == 1, made.stderr
    assert "/flux' follows no --control picture by itself; these models do: depth, canny; or" in made.stderr


def test_a_control_model_without_a_picture_says_what_it_needs(models: Path) -> None:
    made = h2gen("a cat", *making(models / "follows"))
    assert made.returncode == 2
    assert "follows a picture; give it with --control FILE" in made.stderr


def test_a_single_file_of_a_control_model_loads_on_the_whole_model_of_its_kind(models: Path, tmp_path: Path) -> None:
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(models / "follows" / "transformer")
    file = save_single(transformer, tmp_path / "canny.safetensors")
    given = [*making(file), "--base", str(models / "follows"), "--control", "canny:photo.png"]
    made = h2gen("a cat", *given)
    assert made.returncode == 0, made.stderr
    whole = h2gen("a cat", *making(models / "follows"), "--control", "canny:photo.png")
    assert np.array_equal(pixels(made.stdout), pixels(whole.stdout))


def test_a_picture_may_be_read_in_place_of_a_prompt(models: Path) -> None:
    redux = ["--redux", "photo.png", "--redux-model", str(models / "redux")]
    made = h2gen(*redux, *making(models / "flux"), "--json", "--plan", "FSFF")
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["settings"]["prompt"] == "" and Path(found["path"]).name == "photo-7.png"
    again = h2gen("replay", found["path"], "--model", str(models / "flux"), "-q", *redux)
    assert again.returncode == 0, again.stderr
    assert np.array_equal(pixels(again.stdout), pixels(found["path"]))
    lines = [":set redux_model " + str(models / "redux"), ":set redux photo.png", '""', ":again", ":unset redux", '""']
    shell = h2gen("shell", *making(models / "flux")[:-3], "--size", "64", "--plan", "FSFF", input="\n".join(lines))
    assert [Path(line).name for line in shell.stdout.split()] == ["photo-7-3.png", "photo-7-4.png"], shell.stderr
    assert np.array_equal(pixels(shell.stdout.split()[0]), pixels(found["path"]))
    assert "The prompt is empty; describe a picture, such as 'a cat', or give one with --redux." in shell.stderr
    for command in ([], ["--redux", "none"]):
        empty = h2gen(*command, *making(models / "flux"))
        assert (empty.returncode, len(empty.stderr.splitlines())) == (2, 1), empty.stderr


def test_an_empty_prompt_is_what_diffusers_encodes(models: Path) -> None:
    session = load(str(models / "flux"), device="cpu")
    given = {"seed": 7, "steps": 2, "size": 64, "max_sequence_length": 16, "cache": None}
    ours = session.generate(redux="photo.png", redux_model=str(models / "redux"), **given)
    assert ours.save().name == "photo-7.png"
    pipe = session.pipe
    prior = diffusers.FluxPriorReduxPipeline.from_pretrained(
        models / "redux", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer,
        text_encoder_2=pipe.text_encoder_2, tokenizer_2=pipe.tokenizer_2,
    )  # fmt: skip
    image = prior.encode_image(Image.open("photo.png"), "cpu", 1)
    tokens = prior.image_embedder(image).image_embeds
    text, pooled, _ = pipe.encode_prompt(prompt=[""], prompt_2=None, max_sequence_length=16)
    plain = pipe(
        prompt_embeds=torch.cat([text, tokens], dim=1), pooled_prompt_embeds=pooled, num_inference_steps=2,
        width=64, height=64, guidance_scale=3.5, generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    assert np.array_equal(np.asarray(ours.image), np.asarray(plain.images[0]))


def test_a_shell_with_an_input_picture_takes_them_one_after_the_other(models: Path) -> None:
    state = ShellState({"model": str(models / "flux"), "image": "photo.png"})
    state.read(":set control depth.png")
    net = models / "net.safetensors"
    request = state.read(f":set controlnet {net}").request
    assert request is not None and request.settings.inputs["controlnet"] == 1
    check_inputs(request.checkpoint, request.settings)
