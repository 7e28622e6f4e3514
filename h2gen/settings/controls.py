"""Control pictures, ControlNets and Redux: checked against each other and the model before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from h2gen.errors import SettingError
from h2gen.families.controlnet import mixture
from h2gen.models.catalogue import CATALOGUE, Checkpoint
from h2gen.models.choices import MODES, mode_of
from h2gen.models.facts import entry_of, facts_of
from h2gen.models.tasks import check_control, tasks_of
from h2gen.settings.edges import check_opencv
from h2gen.settings.inputs import InputFile
from h2gen.settings.layers import Resolved, files_in
from h2gen.wording import printable

_DRAWN = "canny"
"""The kind of control picture that h2gen makes itself."""


def with_redux_model(checkpoint: Checkpoint, resolved: dict[str, Resolved]) -> None:
    """Add the model that reads Redux's pictures, which are found, or leave it out if there are none.

    Raises:
        SettingError: the checkpoint is of a family without Redux, or too small for the model that would be downloaded.
    """
    if not any(files_in(resolved, "redux")):
        resolved.pop("redux_model", None)
        return
    from h2gen.models.redux import ALIAS, WIDTH

    facts = facts_of(checkpoint)
    added = "redux_model" not in resolved
    if facts is not None:
        needed = facts.config.get("joint_attention_dim", WIDTH)
        if facts.family.redux is None or (added and needed != WIDTH):
            able = [alias for alias, entry in CATALOGUE.items() if entry.of_family.redux and entry.repo]
            raise SettingError(f"{checkpoint.name!r} does not support --redux; these models do: {', '.join(able)}.")
    if added:
        resolved["redux_model"] = Resolved(ALIAS, "built in")


def check_controls(checkpoint: Checkpoint, resolved: dict[str, Resolved]) -> tuple[str, ...]:
    """Check control pictures, ControlNets and Redux against each other and the model, as far as that is known.

    Without a picture to start from, and without a size, the picture gets the shape of its control picture.

    Args:
        checkpoint: of the model.
        resolved: all settings; the files are found and hashed. Sizes and weights that follow are put in.

    Returns:
        Lines that the user should see.

    Raises:
        UsageError: they cannot be used together, or not with the model.
    """
    controls, nets, redux, prior = files_in(resolved, "control", "controlnet", "redux", "redux_model")
    notices: list[str] = []
    if controls or nets:
        tasks = tasks_of(checkpoint, (lora.path for lora in files_in(resolved, "lora")[0]))
        if nets and tasks != tasks_of(checkpoint):
            raise SettingError(
                "--controlnet and a Control LoRA both follow the --control picture, so they cannot be used together; "
                "give one."
            )
        check_control(checkpoint.name, tasks, len(controls), len(nets), complete=False)
        _check_nets(checkpoint, controls, nets)
        notices += () if nets else _about_kinds(checkpoint, controls)
        notices += _take_size(checkpoint, controls, resolved)
        if nets and any(files_in(resolved, "image")) and resolved["cfg"].value > 1:
            raise SettingError(
                f"cfg is {resolved['cfg'].value:g}, but with --image a ControlNet has no true guidance; use --guidance."
            )
    if redux:
        _check_redux(checkpoint, redux, prior)
        resolved["redux"] = replace(resolved["redux"], value=tuple(_weighted(redux)))
    return tuple(notices)


def nets_of(nets: Sequence[InputFile], controls: Sequence[InputFile]) -> tuple[InputFile, ...]:
    """A ControlNet for each control picture: one alone follows all of them."""
    return tuple(nets) * len(controls) if len(nets) == 1 else tuple(nets)


def mode_for(net: Mapping[str, Any], name: str, control: InputFile) -> int | None:
    """The mode of a ControlNet for a control picture; None if it is no union.

    Raises:
        SettingError: it is a union, and has no such kind.
    """
    try:
        return mode_of(net, control.kind)
    except LookupError as error:
        given = f"the kind {control.kind!r}" if control.kind else "no kind"
        raise SettingError(
            f"The ControlNet {printable(name)!r} is a union, and --control {printable(control.name)!r} has {given}; "
            f"put one of its kinds before the file, such as depth:FILE ({error})."
        ) from error


def _about_kinds(checkpoint: Checkpoint, controls: Sequence[InputFile]) -> Iterator[str]:
    """About control pictures of another kind than the model was trained on."""
    entry = entry_of(checkpoint.base or checkpoint)
    follows = "" if entry is None else entry.follows
    for control in controls:
        if follows and control.kind and MODES[control.kind] != MODES[follows]:
            able = [
                name for name, each in CATALOGUE.items() if each.follows and MODES[each.follows] == MODES[control.kind]
            ]
            instead = f", or use --model {able[0]}" if able else ""
            yield (
                f"{checkpoint.name!r} was trained to follow {follows!r} pictures, but "
                f"{printable(control.name)!r} is given as {control.kind!r}; expect a poor picture{instead}."
            )


def _check_nets(checkpoint: Checkpoint, controls: Sequence[InputFile], nets: Sequence[InputFile]) -> None:
    from h2gen.models.controlnet import check_fits, read_controlnet

    if any(control.kind == _DRAWN for control in controls):
        check_opencv()
    if any(net.path is None for net in nets):
        return  # of a picture's metadata: nothing is made from these settings
    configs = [read_controlnet(Path(str(net.path))) for net in nets]
    facts = facts_of(checkpoint)
    for net, config in zip(nets, configs, strict=True):
        if facts is not None:
            check_fits(net.name, config, checkpoint.name, facts.config)
    if len(configs) > 1 and (differ := mixture(configs)):
        raise SettingError(f"These ControlNets cannot be used together: {differ}; use one of them.")
    by_hash = {net.sha256: config for net, config in zip(nets, configs, strict=True)}
    for each, control in zip(nets_of(nets, controls), controls, strict=False):  # a control model has no nets
        mode_for(by_hash[each.sha256], each.name, control)


def _take_size(checkpoint: Checkpoint, controls: Sequence[InputFile], resolved: dict[str, Resolved]) -> list[str]:
    """The size of the first control picture, unless something else gives one, and what is said about resizing."""
    from h2gen.settings.editing import resized
    from h2gen.settings.pictures import open_picture, size_like

    sizes = [open_picture(control).size for control in controls]
    if resolved["size"].source == "model default":
        width, height = size_like(sizes[0], checkpoint.defaults)
        resolved["size"] = Resolved(f"{width}x{height}", "control")
    wanted = tuple(int(side) for side in str(resolved["size"].value).split("x"))
    both = zip(controls, sizes, strict=True)
    return [resized(control, size, wanted) for control, size in both if size != wanted]


def _check_redux(checkpoint: Checkpoint, pictures: Sequence[InputFile], prior: Sequence[InputFile]) -> None:
    from h2gen.models.redux import WIDTH, text_width
    from h2gen.settings.pictures import open_picture

    facts = facts_of(checkpoint)
    if facts is not None and prior and prior[0].path is not None:
        width, needed = text_width(Path(str(prior[0].path))), facts.config.get("joint_attention_dim", WIDTH)
        if width != needed:
            raise SettingError(
                f"The Redux model {prior[0].name!r} does not fit the model {checkpoint.name!r}: it makes text tokens "
                f"of {width} channels, and the model takes {needed}."
            )
    for picture in pictures:
        open_picture(picture)


def _weighted(pictures: Sequence[InputFile]) -> list[InputFile]:
    """The pictures with their weights; those without one share 1."""
    return [file if file.scale is not None else replace(file, scale=1 / len(pictures)) for file in pictures]
