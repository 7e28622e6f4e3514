"""What a picture is made from besides the prompt: the task, how strongly the input changes, and the size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from h2gen.errors import SettingError
from h2gen.families import LIMITS, STRENGTHS
from h2gen.families.tasks import LEAST_SIDE, MOST_ASPECT
from h2gen.models.catalogue import Checkpoint
from h2gen.models.tasks import complete_task, task_of, tasks_of
from h2gen.settings.inputs import InputFile
from h2gen.settings.layers import Resolved, files_in
from h2gen.wording import printable, times

if TYPE_CHECKING:
    from h2gen.settings.values import Settings

_SHAPE = 1.02
"""The aspect ratios of a picture and its mask may differ by this factor: programs round sizes."""


class Inputs(NamedTuple):
    """The input pictures of a picture.

    Args:
        image: the files; with their strengths, if the task has one.
        size: the size of the picture, such as ``1024x768``.
        source: where the size comes from.
        notices: lines that the user should see.
    """

    image: tuple[InputFile, ...]
    size: str
    source: str
    notices: tuple[str, ...]


def check_inputs(checkpoint: Checkpoint, settings: Settings) -> None:
    """Check that no input picture or mask is missing for these settings.

    Raises:
        SettingError: the model needs a picture and a mask.
    """
    tasks = tasks_of(checkpoint, (file.path for file in settings.lora))
    complete_task(checkpoint.name, tasks, **settings.inputs)


def inputs_of(checkpoint: Checkpoint, resolved: Mapping[str, Resolved]) -> Inputs | None:
    """Open the input pictures, and derive strengths and the size from them; None if there are none.

    Args:
        checkpoint: of the model.
        resolved: all settings; the files are found and hashed, the size is ``1024x768``.

    Raises:
        SettingError: the model does not take them, or one of them cannot be opened or used.
    """
    files, masks, controls, nets, loras = files_in(resolved, "image", "mask", "control", "controlnet", "lora")
    if not files and not masks:
        return None
    tasks = tasks_of(checkpoint, (lora.path for lora in loras))
    given: Any = {"control": len(controls), "controlnet": len(nets)}
    task = task_of(checkpoint.name, tasks, pictures=len(files), mask=bool(masks), complete=False, **given)
    from h2gen.settings.pictures import open_picture, size_like

    limits = LIMITS.get((tasks or {}).get(task, ""), LIMITS[""])
    if tasks is not None and len(files) > limits.pictures:
        most = "one picture" if limits.pictures == 1 else f"at most {limits.pictures} pictures"
        also = " with --mask" if masks else ""
        raise SettingError(f"--image is given {times(len(files))}; {checkpoint.name!r} takes {most}{also}.")
    image = tuple(_with_strength(file, task if place == 0 else "edit") for place, file in enumerate(files))
    sizes = [open_picture(file).size for file in files]
    if task == "edit":
        for file, own in zip(files, sizes, strict=True):
            _check_reference(file, own)
    size, source = str(resolved["size"].value), resolved["size"].source
    if source == "model default":
        width, height = size_like(sizes[0], checkpoint.defaults)
        size, source = f"{width}x{height}", "image"
    wanted = tuple(int(side) for side in size.split("x"))
    if limits.pixels is not None and math.prod(wanted) > limits.pixels:
        side = math.isqrt(limits.pixels)
        raise SettingError(
            f"size is {size}, but {checkpoint.name!r} inpaints at most {limits.pixels} pixels, such as {side}x{side}; "
            "give a smaller --size."
        )
    notices = list(_about_frames(files))
    for mask in masks:
        _check_mask(mask, open_picture(mask, mask=True).size, files[0], sizes[0])
    if task != "edit" and sizes[0] != wanted:
        notices.append(resized(files[0], sizes[0], wanted))
    return Inputs(image, size, source, tuple(notices))


def _with_strength(file: InputFile, task: str) -> InputFile:
    """The file with its strength, or the task's default; a reference has none."""
    if task in STRENGTHS:
        return file if file.scale is not None else replace(file, scale=STRENGTHS[task])
    if file.scale is not None:
        raise SettingError(
            f"--image {str(file)!r} has a strength, but this model uses the picture as a reference, which has none; "
            f"give {file.name!r} without a number."
        )
    return file


def _check_reference(file: InputFile, size: tuple[int, int]) -> None:
    if min(size) < LEAST_SIDE or max(size) > MOST_ASPECT * min(size):
        raise SettingError(
            f"--image {printable(file.name)!r} is {size[0]}x{size[1]}; both sides of a reference need at least "
            f"{LEAST_SIDE} pixels, and one may be at most {MOST_ASPECT} times as long as the other."
        )


def _check_mask(mask: InputFile, size: tuple[int, int], picture: InputFile, of: tuple[int, int]) -> None:
    shape = size[0] * of[1] / (size[1] * of[0])
    if not 1 / _SHAPE <= shape <= _SHAPE:
        raise SettingError(
            f"--mask {printable(mask.name)!r} is {size[0]}x{size[1]}, but {printable(picture.name)!r} is "
            f"{of[0]}x{of[1]}; give a mask with the picture's aspect ratio."
        )


def _about_frames(files: Sequence[InputFile]) -> Iterator[str]:
    from h2gen.settings.pictures import open_picture

    for file in files:
        if open_picture(file).animated:
            yield f"{printable(file.name)!r} is animated; only its first frame is used."


def resized(file: InputFile, size: tuple[int, int], wanted: tuple[int, ...]) -> str:
    """What is said about an input picture that has another size than the one that is made, in pixels."""
    shape = size[0] * wanted[1] / (size[1] * wanted[0])
    cropped = "" if 1 / _SHAPE <= shape <= _SHAPE else "cropped and "
    return f"{printable(file.name)!r} ({size[0]}x{size[1]}) is {cropped}resized to {wanted[0]}x{wanted[1]}."
