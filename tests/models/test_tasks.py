"""What a model makes pictures from is known before it is loaded, and its pipelines share their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import diffusers
import pytest

from h2gen.errors import SettingError
from h2gen.families import FAMILIES, TASKS
from h2gen.models.catalogue import Checkpoint, ModelDefaults, resolve
from h2gen.models.tasks import complete_task, pipeline_for, task_of, tasks_of
from tests.small import flux2_klein_pipeline, flux_pipeline


def folder_of(tmp_path: Path, pipeline: str) -> Checkpoint:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return Checkpoint("mine", "folder", tmp_path, None, ModelDefaults())


def test_every_pipeline_that_a_family_names_exists_and_takes_the_arguments_of_its_task() -> None:
    for tasks in TASKS.values():
        for task, pipeline in tasks.items():
            assert hasattr(diffusers, pipeline), (task, pipeline)
    for family in FAMILIES.values():
        ours = {pipeline for tasks in family.tasks.values() for pipeline in tasks.values()}
        assert family.limits.keys() <= ours


def test_a_models_tasks_are_known_before_it_is_loaded(tmp_path: Path) -> None:
    assert {*(tasks_of(resolve("tiny")) or ())} >= {"text", "image", "inpaint", "controlnet"}
    assert {*(tasks_of(resolve("klein-4b")) or ())} == {"text", "edit", "inpaint"}
    assert {*(tasks_of(resolve("flux2-dev")) or ())} == {"text", "edit"}
    assert {*(tasks_of(folder_of(tmp_path, "FluxFillPipeline")) or ())} == {"fill"}
    (tmp_path / "model_index.json").rename(tmp_path / "modular_model_index.json")
    assert {*(tasks_of(Checkpoint("mine", "folder", tmp_path, None, ModelDefaults())) or ())} == {"fill"}
    assert {*(tasks_of(resolve("flux3-klein")) or ())} == {"text", "edit"}
    assert tasks_of(resolve("nobody/has-this")) is None
    assert tasks_of(resolve("fill")) == {"fill": "FluxFillPipeline"}


@pytest.mark.parametrize(
    ("pipeline", "given", "task"),
    [
        ("FluxPipeline", {}, "text"),
        ("FluxPipeline", {"pictures": 1}, "image"),
        ("FluxPipeline", {"pictures": 1, "mask": True}, "inpaint"),
        ("FluxKontextPipeline", {"pictures": 1}, "edit"),
        ("FluxFillPipeline", {"pictures": 1, "mask": True}, "fill"),
        ("Flux2Pipeline", {"pictures": 3}, "edit"),
    ],
)
def test_what_is_given_and_the_model_decide_the_task(pipeline: str, given: Mapping[str, int | bool], task: str) -> None:
    assert task_of("mine", TASKS[pipeline], **given) == task  # type: ignore[arg-type]


def test_what_a_model_cannot_do_is_said_with_those_that_can() -> None:
    with pytest.raises(SettingError, match="'flux2-dev' cannot inpaint, so it takes no --mask; these models can: tiny"):
        task_of("flux2-dev", TASKS["Flux2Pipeline"], pictures=1, mask=True)
    with pytest.raises(SettingError, match="give the picture with --image and the part with --mask"):
        complete_task("fill", TASKS["FluxFillPipeline"], mask=False, control=0)
    with pytest.raises(SettingError, match="also give --image"):
        task_of("tiny", TASKS["FluxPipeline"], mask=True)


def test_pipelines_of_one_checkpoint_share_its_parts_and_its_configuration() -> None:
    pipe = flux2_klein_pipeline(layers=1, single_layers=1, is_distilled=True)
    pipe._offload_device = "cuda:1"
    other = pipeline_for(pipe, TASKS["Flux2KleinPipeline"]["inpaint"])
    assert type(other).__name__ == "Flux2KleinInpaintPipeline"
    assert other.transformer is pipe.transformer and other.vae is pipe.vae and other.scheduler is pipe.scheduler
    assert other.config.is_distilled and other._offload_device == "cuda:1"
    assert pipeline_for(pipe, "Flux2KleinPipeline") is pipe


def test_building_another_pipeline_changes_no_weights() -> None:
    pipe = flux_pipeline(layers=1, single_layers=1)
    pipe.transformer.half()
    other = pipeline_for(pipe, "FluxInpaintPipeline")
    assert other.transformer.dtype == pipe.transformer.dtype and str(other.transformer.dtype) == "torch.float16"


def test_a_controlnet_may_still_come_after_its_control_picture() -> None:
    given = {"pictures": 1, "control": 1}
    assert task_of("mine", TASKS["FluxPipeline"], complete=False, **given) == "controlnet image"
    with pytest.raises(SettingError, match="follows no --control picture by itself"):
        task_of("mine", TASKS["FluxPipeline"], **given)
    with pytest.raises(SettingError, match="follows no --control picture by itself"):
        task_of("mine", TASKS["Flux2Pipeline"], complete=False, **given)
