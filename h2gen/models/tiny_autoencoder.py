"""Tiny autoencoders, such as TAEF1, which decode previews: found, checked and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from h2gen.errors import ModelError, SettingError
from h2gen.files import expanded
from h2gen.models import files
from h2gen.models.catalogue import REPO_ID
from h2gen.models.files import shown
from h2gen.models.side_models import cached_part, download_part
from h2gen.wording import printable

_CONFIG, _CLASS = "config.json", "AutoencoderTiny"
_PATTERNS = (_CONFIG, "*.safetensors")


def find_tiny_autoencoder(name: str, *, download: bool = True) -> Path | None:
    """The folder of a tiny autoencoder, downloaded if it has to be and may be; None if it may not.

    Args:
        name: a folder in diffusers' layout, or a repository such as ``madebyollin/taef1``.
        download: whether it may be downloaded.

    Raises:
        SettingError: there is none.
        ModelError: it cannot be downloaded, is damaged, or is not a tiny autoencoder.
    """
    folder = expanded(name)
    if not folder.is_dir():
        if not REPO_ID.fullmatch(name) or folder.exists():
            raise SettingError(
                f"There is no tiny autoencoder {printable(name)!r}; give a folder in diffusers' layout, or a "
                "repository such as madebyollin/taef1."
            )
        here = cached_part(name, "", _CONFIG)
        if here is None and not download:
            return None
        folder = here or download_part(name, "", _CONFIG, _PATTERNS)
    if not (folder / _CONFIG).is_file():
        raise ModelError(f"{shown(folder)} is not a tiny autoencoder in diffusers' layout: it has no {_CONFIG}.")
    kind = files.read_json(folder / _CONFIG).get("_class_name")
    if kind != _CLASS:
        raise ModelError(
            f"{shown(folder)} is not a tiny autoencoder: its {_CONFIG} says {printable(repr(kind))}, not {_CLASS}."
        )
    files.weight_files(folder)
    return folder


def load_tiny_autoencoder(folder: Path, dtype: Any, device: Any, channels: int) -> Any:
    """A tiny autoencoder on a device.

    Args:
        folder: that ``find_tiny_autoencoder`` found.
        dtype, device: torch's.
        channels: of the model's latents.

    Raises:
        ModelError: it decodes another number of channels, is damaged or lacks weights.
    """
    import diffusers

    from h2gen.models.load import load_model, quiet

    own = files.read_json(folder / _CONFIG).get("latent_channels", 4)
    if own != channels:
        raise ModelError(
            f"{shown(folder)} decodes latents of {own} channels, and this model's have {channels}; give a tiny "
            "autoencoder made for the model."
        )
    with quiet():
        return load_model(getattr(diffusers, _CLASS), folder, dtype).to(device)
