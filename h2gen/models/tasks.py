"""Tasks: what a model makes a picture from, known before it is loaded, and the pipeline that does it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from h2gen.errors import SettingError
from h2gen.families import CONTROLLED, FAMILIES, TASKS
from h2gen.models.catalogue import CATALOGUE, CatalogueEntry, Checkpoint
from h2gen.models.facts import model_index_of
from h2gen.models.lora_files import is_control_lora
from h2gen.wording import times

_OF_VIDEOS = {name for family in FAMILIES.values() if family.makes_video for name in family.tasks}
"""The pipelines in diffusers that make videos."""
_STATE = ("_all_hooks", "_offload_device", "_offload_gpu_id", "_progress_bar_config")
"""What a pipeline remembers about its offloading and its progress bar."""


def tasks_of(checkpoint: Checkpoint, loras: Iterable[Path | str | None] = ()) -> Mapping[str, str] | None:
    """The tasks of a checkpoint, each with its pipeline in diffusers; None if they are only known once it is loaded.

    Nothing is loaded or downloaded.

    Args:
        checkpoint: the model.
        loras: those files of its LoRAs that are known. A Control LoRA replaces its tasks by others.
    """
    return TASKS.get(pipeline_of(checkpoint, loras))


def pipeline_of(checkpoint: Checkpoint, loras: Iterable[Path | str | None] = ()) -> str:
    """The pipeline in diffusers that a checkpoint is for, with these LoRAs; see ``tasks_of``."""
    name = str(model_index_of(checkpoint).get("_class_name"))
    if name in CONTROLLED and any(is_control_lora(Path(path)) for path in loras if path is not None):
        return CONTROLLED[name]
    return name


def task_of(
    name: str,
    tasks: Collection[str] | None,
    *,
    pictures: int = 0,
    mask: bool = False,
    control: int = 0,
    controlnet: int = 0,
    complete: bool = True,
) -> str:
    """The task of a picture.

    Args:
        name: of the model, for the message.
        tasks: of the model; None if they are unknown: then the task that most models have is assumed.
        pictures: number of input pictures.
        mask: whether there is a mask.
        control: number of control pictures.
        controlnet: number of ControlNets.
        complete: nothing is given later, such as the ControlNet in a shell after its control picture.

    Raises:
        SettingError: the model does not have the task; the message says which models do.
    """
    if mask and not pictures:
        raise SettingError("--mask needs the picture that it belongs to; also give --image.")
    from_picture = ("image", "edit", "fill") if pictures else ("text", "fill")
    wanted: tuple[str, ...] = ("inpaint", "fill") if mask else from_picture
    if control or controlnet:
        check_control(name, tasks, control, controlnet, complete=complete)
        prefix = "controlnet" if controlnet or (tasks is not None and "control" not in tasks) else "control"
        wanted = (prefix if wanted[0] == "text" else f"{prefix} {wanted[0]}",)
    elif tasks is not None and "control" in tasks:
        wanted = ("control",)  # what is missing is reported by ``complete_task``
    if tasks is None:
        return wanted[0]
    for task in wanted:
        if task in tasks:
            return task
    what, option = ("inpaint", "--mask") if mask else ("start from a picture", "--image")
    if isinstance(tasks, Mapping) and _OF_VIDEOS & {*tasks.values()}:
        raise SettingError(f"{name!r} makes videos from text only, so it takes no {option}; leave it out.")
    able = [alias for alias in CATALOGUE if {*wanted[:2]} & {*_tasks_of_entry(CATALOGUE[alias])}]
    raise SettingError(f"{name!r} cannot {what}, so it takes no {option}; these models can: {', '.join(able)}.")


def check_control(
    name: str, tasks: Collection[str] | None, control: int, controlnet: int, *, complete: bool = True
) -> None:
    """Check that a model follows control pictures, by itself or with ControlNets.

    Args:
        name, tasks, control, controlnet: as in ``task_of``.
        complete: nothing is given later, such as the ControlNet in a shell after its control picture.

    Raises:
        SettingError: it does not; the message says which models do.
    """
    prefix, what, how = (
        ("controlnet", "takes no --controlnet", "take one")
        if controlnet
        else ("control", "follows no --control picture by itself", "do")
    )
    if controlnet and not control:
        raise SettingError("--controlnet needs a picture to follow; also give --control.")
    if tasks is None or prefix in tasks:
        if prefix == "control" and control > 1:
            raise SettingError(f"--control is given {times(control)}; {name!r} follows one picture.")
        if prefix == "controlnet" and controlnet not in (1, control):
            raise SettingError(
                f"There are {controlnet} ControlNets and {control} control pictures; give one --control per "
                "--controlnet, or several to one union."
            )
        return
    if not complete and prefix == "control" and "controlnet" in tasks:
        return
    able = [alias for alias, entry in CATALOGUE.items() if prefix in _tasks_of_entry(entry)]
    nets = "; or give it a --controlnet" if prefix == "control" and "controlnet" in tasks else ""
    raise SettingError(f"{name!r} {what}; these models {how}: {', '.join(able)}{nets}.")


def complete_task(
    name: str, tasks: Collection[str] | None, *, mask: bool, control: int, pictures: int = 0, controlnet: int = 0
) -> str:
    """The task of a picture of which no input is missing; the arguments are those of ``task_of``.

    Raises:
        SettingError: as ``task_of``; or the task needs a picture and a mask, or a control picture.
    """
    task = task_of(name, tasks, pictures=pictures, mask=mask, control=control, controlnet=controlnet)
    if task == "control" and not control:
        raise SettingError(
            f"{name!r} follows a picture; give it with --control FILE, used as it is, or, for a model that follows "
            "edges, --control canny:FILE, for which h2gen finds them."
        )
    if task == "fill" and not mask:
        raise SettingError(
            f"{name!r} fills in part of a picture; give the picture with --image and the part with --mask."
        )
    return task


def name_of(pipe: Any) -> str:
    """The class of a pipeline in diffusers; of a modular one, what it is behind the interface of a classic one."""
    return type(getattr(pipe, "pipeline", pipe)).__name__


def pipeline_for(pipe: Any, name: str, **more: Any) -> Any:
    """Another pipeline of diffusers with a loaded one's parts: the same weights, scheduler, offloading, progress bar.

    Args:
        pipe: a loaded pipeline.
        name: of the other one's class.
        more: parts that the loaded one lacks, by name.
    """
    import diffusers

    from h2gen.models.load import quiet

    if name_of(pipe) == name:
        return pipe
    cls = getattr(diffusers, name)
    known = {**pipe.config, **pipe.components, **more}
    # Not by ``from_pipe``, which casts the weights that both share.
    with quiet():
        other = cls(**{key: known[key] for key in inspect.signature(cls.__init__).parameters if key in known})
    for key in _STATE:
        if hasattr(pipe, key):
            setattr(other, key, getattr(pipe, key))
    return other


def _tasks_of_entry(entry: CatalogueEntry) -> Mapping[str, str]:
    return TASKS.get(entry.index["_class_name"], {})
