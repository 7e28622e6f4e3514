"""ControlNets: found by path or repository, known by their headers, and loaded, from safetensors files only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from h2gen.errors import ModelError, SettingError
from h2gen.families.controlnet import CONTROLNET, config_of, is_controlnet, is_xlabs, misfit, wrong_type
from h2gen.files import expanded
from h2gen.models import files
from h2gen.models.catalogue import in_repository
from h2gen.models.files import shown
from h2gen.models.side_models import cached_part, download_part
from h2gen.wording import printable

CONFIG = "config.json"


def find_controlnet(name: str) -> tuple[Path | str, str]:
    """Where a ControlNet is, downloaded if it has to be, and its name in metadata.

    Args:
        name: a .safetensors file, a folder in diffusers' layout, a repository, or a file or folder in a repository,
            such as ``owner/name/file.safetensors``.

    Raises:
        SettingError: there is none; the message begins after the option's name.
        ModelError: it cannot be downloaded, is damaged, or is not a ControlNet of FLUX.1.
    """
    path = expanded(name)
    if not path.exists():
        found = in_repository(name)
        if found is None:
            raise SettingError(
                f"there is no ControlNet {printable(name)!r}; give a .safetensors file, a folder, or a repository such "
                "as owner/name."
            )
        path = download_part(*found, CONFIG)
        read_controlnet(path)
        return path, name
    path = Path(os.path.abspath(path))
    read_controlnet(path)
    return path, printable(path.name)


def known_controlnet(name: str) -> Path | None:
    """Where a ControlNet is that a picture names, if it is a repository's that was downloaded before."""
    found = in_repository(name)
    return None if found is None else cached_part(*found, CONFIG)


def hash_controlnet(path: Path | str) -> str:
    """The hash of a ControlNet's weights: the same for a file and for the folder around it."""
    from h2gen.models.content_hash import files_hash

    return files_hash(weights_of(Path(path)))


def weights_of(path: Path) -> list[Path]:
    """The files with a ControlNet's weights, each checked for completeness.

    Raises:
        ModelError: some are missing or damaged, or only pickles.
    """
    if path.is_dir():
        return files.weight_files(path)
    if path.suffix.lower() != ".safetensors":
        pickle = ", which can run code when it is opened" if path.suffix.lower() in files.PICKLES else ""
        raise ModelError(f"{shown(path)} is not a .safetensors file{pickle}; give one that is.")
    files.read_header(path)
    return [path]


def files_of_controlnet(path: Path) -> list[Path]:
    """The files that are read to load a ControlNet, from a file or a folder.

    Raises:
        ModelError: as ``weights_of``.
    """
    return files.files_of_part(path) if path.is_dir() else [path]


def read_controlnet(path: Path) -> dict[str, Any]:
    """A ControlNet's configuration: its ``config.json``, or what the header of a single file says.

    Raises:
        ModelError: it is not a ControlNet of FLUX.1, or is damaged.
    """
    weights = weights_of(path) if path.is_file() or (path / CONFIG).is_file() else []
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ModelError(f"{shown(path)} is not a ControlNet: it has no {CONFIG}; give a .safetensors file in it.")
        config = files.read_json(path / CONFIG)
        if config.get("_class_name") != CONTROLNET:
            kind = printable(repr(config.get("_class_name")))
            raise ModelError(
                f"{shown(path)} is not a ControlNet of FLUX.1: its {CONFIG} says {kind}, and h2gen uses {CONTROLNET}."
            )
        if (key := wrong_type(config)) is not None:
            raise ModelError(
                f"{shown(path / CONFIG)} is damaged: {key} is {printable(repr(config[key]))[:40]}; "
                f"{files.again(path / CONFIG)}."
            )
        return config
    shapes = {name: stored.shape for name, stored in files.read_header(weights[0]).tensors.items()}
    if is_xlabs(shapes):
        raise ModelError(
            f"{shown(path)} is a ControlNet in XLabs' own layout, which h2gen does not read; give its repository in "
            "diffusers' layout, such as XLabs-AI/flux-controlnet-canny-diffusers."
        )
    if not is_controlnet(shapes):
        raise ModelError(f"{shown(path)} is not a ControlNet of FLUX.1 with diffusers' names; give one that is.")
    try:
        return config_of(shapes)
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{shown(path)} lacks some of its weights; {files.again(path, damaged=True)}.") from error


def check_fits(name: str, net: Mapping[str, Any], model: str, transformer: Mapping[str, Any]) -> None:
    """Check that a ControlNet was made for a model of this size.

    Args:
        name, model: of both, for the message.
        net, transformer: their configurations.

    Raises:
        ModelError: it was not.
    """
    wrong = misfit({"axes_dims_rope": transformer.get("axes_dims_rope"), **net}, transformer)
    if wrong is not None:
        raise ModelError(f"The ControlNet {printable(name)!r} does not fit the model {printable(model)!r}: it {wrong}.")


def load_controlnet(path: Path, transformer: Mapping[str, Any], dtype: Any) -> Any:
    """A ControlNet in main memory.

    Args:
        path: a folder or a file.
        transformer: the configuration of the model that it is for.
        dtype: torch's, of the weights.

    Raises:
        ModelError: it is damaged, quantized, or lacks weights.
    """
    import diffusers
    import torch

    from h2gen.models.load import load_model, quiet
    from h2gen.models.quantized import check_plain

    cls, config = getattr(diffusers, CONTROLNET), read_controlnet(path)
    with quiet():
        if path.is_dir():
            net = load_model(cls, path, dtype)
        else:
            from safetensors.torch import load_file

            check_plain(path)
            with torch.device("meta"):
                net = cls.from_config({"axes_dims_rope": transformer["axes_dims_rope"], **config})
            weights = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
            _check_names(path, weights, net)
            net.load_state_dict(weights, strict=False, assign=True)
    net.register_forward_pre_hook(_one_mode_per_picture, with_kwargs=True)
    return net.eval()


def _check_names(path: Path, weights: Mapping[str, Any], net: Any) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    missing = sorted(wanted.keys() - weights.keys())
    if missing:
        raise ModelError(
            f"{shown(path)} lacks {len(missing)} of its weights, such as {printable(missing[0])!r}; "
            f"{files.again(path, damaged=True)}."
        )
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise ModelError(
                f"{shown(path)} has {printable(name)!r} in the shape {list(weights[name].shape)}, and FLUX.1's "
                f"ControlNets have {list(shape)}; {files.again(path, damaged=True)}."
            )
    files.report_unused(path, [name for name in weights if name not in wanted], type(net).__name__)


def _one_mode_per_picture(_net: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """diffusers' image-to-image gives a union one mode for a whole batch, which a union cannot take."""
    mode, latents = kwargs.get("controlnet_mode"), kwargs.get("hidden_states")
    if mode is None or latents is None or not mode.shape[0] == 1 < latents.shape[0]:
        return None
    return args, {**kwargs, "controlnet_mode": mode.expand(latents.shape[0], -1)}
