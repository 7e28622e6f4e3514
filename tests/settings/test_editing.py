"""Input pictures decide the task, the strength and the size before anything is loaded; plans fit what runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from h2gen.batches.jobs import Jobs, job_id
from h2gen.batches.prompts import Reading, read_prompts
from h2gen.cache import CacheConfig
from h2gen.errors import PromptFileError, SettingError
from h2gen.models.choices import steps_run
from h2gen.settings.inputs import InputFile
from h2gen.settings.resolve import Request, request_from
from h2gen.settings.speedup import Goal, request_for_goal
from h2gen.settings.values import OFF, Settings

BASE = Settings("a cat", 7, 64, 64, 10, cache=OFF)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (128, 96), "red").save("in.png")
    Image.new("RGB", (96, 96), "blue").save("square.png")
    Image.new("L", (128, 96), 255).save("mask.png")
    return tmp_path


def request(**given: Any) -> Request:
    return request_from("a cat", [("option", given)])


def changed(strength: float | None, **more: Any) -> Settings:
    return replace(BASE, image=(InputFile("in.png", "0" * 64, strength),), **more)


@pytest.mark.parametrize(
    ("steps", "strength", "run"), [(28, 0.6, 17), (10, 0.5, 5), (4, 0.01, 1), (20, 0.55, 11), (9, 1.0, 9)]
)
def test_as_many_steps_run_as_in_diffusers(steps: int, strength: float, run: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

    assert steps_run(steps, strength) == run
    pipe = FluxImg2ImgPipeline.__new__(FluxImg2ImgPipeline)
    object.__setattr__(pipe, "scheduler", FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(steps)
    assert len(pipe.get_timesteps(steps, strength, "cpu")[0]) == run


def test_passes_and_shares_count_the_steps_that_run() -> None:
    assert changed(0.6).passes == 6 and changed(None).passes == 10
    assert changed(0.6, cfg=3.0).passes == 12
    assert changed(0.6, solver="heun").passes == 11
    assert changed(0.6, solver="heun").reference == 6 / 11
    assert changed(0.5, steps=5, reference_steps=10).reference == 5 / 3


@pytest.mark.parametrize(
    ("plan", "runs"),
    [
        ("FRSFRRFRFF", "FRFRFF"),
        ("FSSSSSSSSF", "FSSSSF"),
        ("FRFRFF", "FRFRFF"),
        ("FRRFRRRFRF/FFFFRFFFRF", "FRRFRF/FFFFRF"),
    ],
)
def test_of_a_plan_for_all_steps_the_last_letters_run(plan: str, runs: str) -> None:
    settings = changed(0.6, cache=CacheConfig(0, 0, plan=plan), cfg=3.0 if "/" in plan else 1.0)
    assert settings.cache.plan == plan, "as it was given"
    assert settings.running_cache.plan == runs
    assert changed(0.6).running_cache is changed(0.6).cache


def test_a_plan_for_neither_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        SettingError, match="plan has 7 letters; give 10, one per pass, or 6, one per pass that runs at"
    ):
        changed(0.6, cache=CacheConfig(0, 0, plan="FRRRRRF"))


def test_strength_and_size_are_settled_before_anything_is_loaded() -> None:
    found = request(image=["in.png"])
    assert found.settings.image[0].scale == 0.6 and (found.settings.width, found.settings.height) == (128, 96)
    assert found.resolved["size"].source == "image" and len(found.notices) == 1
    assert request(image=["in.png:0.3"]).settings.image[0].scale == 0.3
    inpainted = request(image=["in.png"], mask=["mask.png"]).settings
    assert inpainted.image[0].scale == 0.85 and inpainted.mask[0].name == "mask.png"


def test_what_is_done_to_a_picture_that_does_not_fit_is_told() -> None:
    Image.new("RGB", (1280, 992)).save("large.png")
    assert "'large.png' (1280x992) is resized to 144x112." in request(image=["large.png"]).notices
    assert "'in.png' (128x96) is cropped and resized to 64x64." in request(image=["in.png"], size="64").notices
    Image.new("RGB", (96, 96)).save("a.gif", save_all=True, append_images=[Image.new("RGB", (96, 96), "red")])
    assert any(
        "'a.gif' is animated; only its first frame is used." in line for line in request(image=["a.gif"]).notices
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": ["mask.png"]}, "also give --image"),
        ({"image": ["in.png", "in.png"]}, "'tiny' takes one picture."),
        ({"image": ["in.png:0"]}, "give a strength above 0 and up to 1"),
        (
            {"image": ["square.png"], "mask": ["mask.png"]},
            "--mask 'mask.png' is 128x96, but 'square.png' is 96x96; give",
        ),
        (
            {"image": ["in.png:0.5"], "model": "kontext"},
            "has a strength, but this model uses the picture as a reference",
        ),
        ({"image": ["in.png"], "mask": ["mask.png"], "model": "flux2-dev"}, "cannot inpaint, so it takes no --mask"),
        (
            {"image": ["in.png"], "mask": ["mask.png"], "model": "klein-4b", "size": "2048"},
            "at most 1048576 pixels, such as 1024x1024; give a smaller",
        ),
        ({"image": ["missing.png"]}, "there is no file 'missing.png'"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_loaded(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        request(**given)
    assert message in str(caught.value)


def test_references_have_limits_and_need_no_strength() -> None:
    found = request(image=["in.png", "square.png"], model="klein-4b").settings
    assert [file.scale for file in found.image] == [None, None] and found.strength == 1
    Image.new("RGB", (900, 100)).save("long.png")
    with pytest.raises(SettingError, match="at least 64 pixels, and one may be at most 8 times as long"):
        request(image=["long.png"], model="klein-4b")
    inpainted = request(image=["in.png:0.7", "square.png"], mask=["mask.png"], model="klein-4b").settings
    assert [file.scale for file in inpainted.image] == [0.7, None]


def test_a_model_that_fills_needs_both_but_a_shell_may_give_them_one_by_one() -> None:
    assert request(model="fill", image=["in.png"]).settings.image[0].scale == 1
    reading = Reading()
    reading.add("prompt 1", "a cat", {"image": "in.png"})
    with pytest.raises(PromptFileError, match="give the picture with --image and the part with --mask"):
        Jobs(reading, {"model": "fill"})


def test_a_speedup_goes_with_an_input_picture() -> None:
    found = request_for_goal(
        "a cat", [("option", {"image": ["square.png:0.5"], "size": "128", "seed": 1})], Goal(speedup=3)
    )
    assert found.settings.strength == 0.5 and found.settings.reference_steps == 28
    assert found.settings.reference > 1 or found.settings.running_cache.enabled


def test_prompt_files_name_pictures_beside_them_and_jobs_differ_by_contents(here: Path) -> None:
    (here / "sub").mkdir()
    Image.new("RGB", (64, 64), "green").save("sub/in.png")
    lines = [
        {"prompt": "a cat", "image": "in.png:0.4"},
        {"prompt": "a cat", "image": ["in.png"], "mask": "../mask.png", "size": "64"},
    ]
    (here / "sub/p.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    Image.new("L", (64, 64), 255).save("mask.png")
    one, two = Jobs(read_prompts(["sub/p.jsonl"], None), {"seed": 1})
    assert (one.settings.width, one.settings.image[0].scale) == (64, 0.4)
    assert two.settings.mask and not one.settings.goes_with(two.settings)
    assert job_id(one.settings, "model", "float32") != job_id(two.settings, "model", "float32")
    renamed = replace(one.settings.image[0], name="other.png")
    assert job_id(replace(one.settings, image=(renamed,)), "model", "float32") == job_id(
        one.settings, "model", "float32"
    )
