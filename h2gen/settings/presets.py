"""Presets: named settings of the cache, in TOML files that ship with h2gen or that the user has written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from h2gen import files
from h2gen.cache.config import CacheConfig
from h2gen.cache.policies import switched_off
from h2gen.checks import Rule
from h2gen.errors import PresetError, SettingError
from h2gen.files import expanded
from h2gen.settings.inputs import InputFile
from h2gen.settings.synonyms import suggestion
from h2gen.settings.table import BY_NAME
from h2gen.toml import read_toml
from h2gen.wording import did_you_mean, printable, shown

DEFAULT = "balanced"

_HERE = Path(__file__).resolve().parents[1]
# In a wheel the presets are inside the package, in a checkout next to it.
_SHIPPED = next((folder for folder in (_HERE / "_presets", _HERE.parent / "presets") if folder.is_dir()), _HERE)
_SETTINGS = tuple(field.name for field in fields(CacheConfig))
_FILES = ("lora",)
"""Settings of files that a preset may give too."""
_OTHER = {"description": Rule(str), "figures": Rule(dict)}


@dataclass(frozen=True)
class Preset:
    """A named ``CacheConfig``, with what it is for, the figures that were measured with it, and files such as LoRAs."""

    name: str
    path: Path
    description: str
    config: CacheConfig
    figures: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[InputFile, ...]] = field(default_factory=dict)


def user_folder() -> Path:
    """The folder of the user's own presets."""
    return files.user_folder("config") / "presets"


def list_presets() -> Iterator[Preset]:
    """The shipped presets and the user's own, by name; a user's preset hides a shipped one of the same name.

    Raises:
        PresetError: one of them is not valid.
    """
    for _, path in sorted(_paths().items()):
        yield read_preset(path)


def preset_names() -> list[str]:
    """The names of all presets, without reading their files."""
    return sorted(_paths())


def load_preset(name: str) -> Preset:
    """A preset by its name, or by the path of its file (anything with a folder or ``.toml`` in it).

    Raises:
        PresetError: the name is unknown (the message has the closest one), or the file is not valid.
    """
    if name.endswith(".toml") or "/" in name or "\\" in name:
        if not os.path.exists(expanded(name)):
            known = ", ".join(preset_names())
            raise PresetError(f"There is no preset file {printable(name)!r}; check the path, or give a name: {known}.")
        return read_preset(expanded(name))
    paths = _paths()
    if name not in paths:
        raise PresetError(
            f"There is no preset {shown(name)}{did_you_mean(name, paths)} Known presets: {', '.join(sorted(paths))}; "
            "give your own file by its path."
        )
    return read_preset(paths[name])


def read_preset(path: Path) -> Preset:
    """Read and check one preset file.

    Raises:
        PresetError: the file cannot be read, or one of its keys or values is wrong.
    """
    try:
        data = read_toml(path)
    except ValueError as error:
        raise PresetError(f"Preset {str(path)!r} cannot be used: {error}.") from error
    for key in data:
        if key not in (*_SETTINGS, *_FILES, *_OTHER):
            raise PresetError(
                f"Preset {str(path)!r} has an unknown key {shown(key)}{suggestion(key, (*_SETTINGS, *_FILES))} "
                f"Known keys: {', '.join((*_SETTINGS, *_FILES, *_OTHER))}."
            )
    try:
        for key, rule in _OTHER.items():
            if key in data:
                rule.check_kind(key, data[key])
        off = switched_off({"tolerance": data.get("tolerance")})
        config = CacheConfig(**off | {key: data[key] for key in _SETTINGS if key in data})
        given = {key: BY_NAME[key].beside(path.parent, data[key]) for key in _FILES if key in data}
    except SettingError as error:
        raise PresetError(f"Preset {str(path)!r}: {error}") from error
    missing = [name for name in ("tau1", "tau2") if name not in data and not (config.plan or config.tolerance)]
    if missing:
        raise PresetError(f"Preset {str(path)!r} lacks {' and '.join(missing)}; 0 switches a threshold off.")
    description = " ".join(data.get("description", "").split())
    return Preset(path.stem, path, description, config, data.get("figures", {}), given)


def check_new(name: str) -> Path:
    """The file for a new preset of this name.

    Raises:
        PresetError: the name is not a plain word, or is taken, or there is no home folder.
        OutputError: the folder of presets cannot be written to.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise PresetError(f"A preset cannot be called {shown(name)}; use letters, digits, - and _.")
    taken = _paths().get(name)
    if taken is not None:
        raise PresetError(f"A preset {name!r} already exists, in {str(taken)!r}; give another name.")
    try:
        folder = user_folder()
    except OSError as error:
        raise PresetError(f"The preset {name!r} cannot be saved: {error.strerror}.") from error
    files.check_folder(folder)
    return folder / f"{name}.toml"


def write_preset(name: str, config: CacheConfig, description: str, figures: Mapping[str, Any]) -> Path:
    """Write a user preset.

    Raises:
        PresetError: the name is taken or not a plain word, or the file cannot be written.
    """
    import tomli_w

    path = check_new(name)
    text = tomli_w.dumps({"description": description, **asdict(config), "figures": dict(figures)})
    try:
        files.write_whole(path, text)
    except OSError as error:
        raise PresetError(f"The preset {str(path)!r} cannot be written: {error.strerror or error}.") from error
    return path


def _paths() -> dict[str, Path]:
    return {path.stem: path for path in (*sorted(_SHIPPED.glob("*.toml")), *files.user_files("config", "presets"))}
