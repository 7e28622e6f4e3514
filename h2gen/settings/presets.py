"""Named cache settings: TOML files that ship with h2gen, and the user's own beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from h2gen.cache.config import CacheConfig
from h2gen.errors import PresetError, SettingError
from h2gen.toml import read_toml
from h2gen.wording import did_you_mean, shown

DEFAULT = "balanced"

_HERE = Path(__file__).resolve().parents[1]
# In a wheel the presets lie inside the package, in a checkout beside it.
_SHIPPED = next((folder for folder in (_HERE / "_presets", _HERE.parent / "presets") if folder.is_dir()), _HERE)
_SETTINGS = tuple(field.name for field in fields(CacheConfig))


@dataclass(frozen=True)
class Preset:
    """A named ``CacheConfig``: what it is for, and the figures that were measured with it."""

    name: str
    path: Path
    description: str
    config: CacheConfig
    figures: Mapping[str, Any] = field(default_factory=dict)


def user_folder() -> Path:
    """Where the user's own presets lie."""
    return Path(platformdirs.user_config_dir("h2gen", appauthor=False)) / "presets"


def list_presets() -> Iterator[Preset]:
    """The shipped presets and the user's own, by name; a user's preset hides a shipped one of the same name.

    Raises:
        PresetError: one of them is not valid.
    """
    for _, path in sorted(_paths().items()):
        yield read_preset(path)


def load_preset(name: str) -> Preset:
    """A preset by its name, or by the path of its file (anything with a folder or ``.toml`` in it).

    Raises:
        PresetError: there is none of that name (the closest is named), or its file is not valid.
    """
    if name.endswith(".toml") or "/" in name or "\\" in name:
        return read_preset(Path(name).expanduser())
    paths = _paths()
    if name not in paths:
        raise PresetError(
            f"There is no preset {shown(name)}{did_you_mean(name, paths)} Known are {', '.join(sorted(paths))}; "
            "a file of your own is given by its path."
        )
    return read_preset(paths[name])


def read_preset(path: Path) -> Preset:
    """Read and check one preset file.

    Raises:
        PresetError: the file cannot be read, or a key or a value in it is wrong.
    """
    try:
        data = read_toml(path)
    except ValueError as error:
        raise PresetError(f"Preset {str(path)!r} cannot be used: {error}.") from error
    for key in data:
        if key not in (*_SETTINGS, "description", "figures"):
            raise PresetError(
                f"Preset {str(path)!r} has an unknown key {shown(key)}{did_you_mean(key, _SETTINGS)} "
                f"It takes description, {', '.join(_SETTINGS)} and a table of figures."
            )
    description, figures = data.get("description", ""), data.get("figures", {})
    for key, value, kind, name in (("description", description, str, "text"), ("figures", figures, dict, "a table")):
        if not isinstance(value, kind):
            raise PresetError(f"Preset {str(path)!r}: {key} is {shown(value)}; it must be {name}.")
    try:
        alone = {"tau1": 0.0, "tau2": 0.0} if data.get("tolerance") else {}
        config = CacheConfig(**alone | {key: data[key] for key in _SETTINGS if key in data})
    except SettingError as error:
        raise PresetError(f"Preset {str(path)!r}: {error}") from error
    missing = [name for name in ("tau1", "tau2") if name not in data and not (config.plan or config.tolerance)]
    if missing:
        raise PresetError(f"Preset {str(path)!r} does not say {' and '.join(missing)}; 0 switches a threshold off.")
    return Preset(path.stem, path, " ".join(description.split()), config, figures)


def check_new(name: str) -> Path:
    """The file that a new preset of this name would get.

    Raises:
        PresetError: the name is no plain word, or is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise PresetError(f"A preset cannot be called {shown(name)}; use letters, digits, - and _.")
    taken = _paths().get(name)
    if taken is not None:
        raise PresetError(f"There is a preset {name!r} already, in {str(taken)!r}; give another name.")
    return user_folder() / f"{name}.toml"


def write_preset(name: str, config: CacheConfig, description: str, figures: Mapping[str, Any]) -> Path:
    """Write a preset of the user's own.

    Raises:
        PresetError: the name is taken or none, or the file cannot be written.
    """
    import tomli_w

    path = check_new(name)
    text = tomli_w.dumps({"description": description, **asdict(config), "figures": dict(figures)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")  # a preset cut short would be in the way of all the others
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise PresetError(f"The preset {str(path)!r} cannot be written: {error.strerror or error}.") from error
    return path


def _paths() -> dict[str, Path]:
    return {path.stem: path for folder in (_SHIPPED, user_folder()) for path in sorted(folder.glob("*.toml"))}
