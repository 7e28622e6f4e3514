"""Profiles on the disk: TOML files, ours inside the package and the user's own in their data folder, all checked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import platformdirs

from h2gen.cache.config import CacheConfig
from h2gen.errors import ProfileError, SettingError
from h2gen.models.choices import SOLVERS
from h2gen.profiles.curve import Choice, Figures, Profile, Situation
from h2gen.toml import read_toml
from h2gen.words import did_you_mean, shown

VERSION = 1
LARGEST = 256 * 1024
"""Bytes of a profile that is read."""
MOST_CHOICES = 200

_SHIPPED = Path(__file__).resolve().parent / "shipped"
_CACHE = {field.name: field.default for field in fields(CacheConfig)}


def user_folder() -> Path:
    """Where the user's own profiles lie."""
    return Path(platformdirs.user_data_dir("h2gen", appauthor=False)) / "profiles"


def file_name(situation: Situation) -> str:
    """What the file of a situation's profile is called; the model's hash keeps namesakes apart."""
    model = re.sub(r"[^A-Za-z0-9]+", "-", situation.model).strip("-")[:60] or "model"
    guided = "-guided" if situation.guidance_mode == "true" else ""
    size = f"{situation.width}x{situation.height}"
    return f"{model}-{situation.steps}-{size}{guided}-{situation.content_hash[:8]}.toml"


def list_profiles() -> Iterator[Profile]:
    """The user's own profiles and the shipped ones; one of the user's hides a shipped one of the same situation.

    Raises:
        ProfileError: one of them is not valid.
    """
    seen = set()
    for folder in (user_folder(), _SHIPPED):
        for path in sorted(folder.glob("*.toml")):
            profile = read_profile(path)
            if profile.situation not in seen:
                seen.add(profile.situation)
                yield profile


def to_toml(profile: Profile) -> str:
    """The profile as its file holds it; of a cache only what is not as ``CacheConfig`` has it by default."""
    import tomli_w

    choices = []
    for choice in profile.choices:
        cache = {name: value for name, value in asdict(choice.cache).items() if value != _CACHE[name]}
        # Thresholds always: 0 is off, and what a file leaves out is the paper's.
        cache |= {"tau1": choice.cache.tau1, "tau2": choice.cache.tau2}
        figures = {name: round(float(value), 4) for name, value in asdict(choice.figures).items()}
        choices.append(
            {"label": choice.label, "steps": choice.steps, "solver": choice.solver, "cache": cache, "figures": figures}
        )
    whole = {
        "version": VERSION,
        "situation": asdict(profile.situation),
        "measured": dict(profile.measured),
        "choices": choices,
    }
    return tomli_w.dumps(whole)


def write_profile(profile: Profile) -> Path:
    """Write a profile of the user's own to its place, over what was there before.

    Raises:
        ProfileError: the file cannot be written.
    """
    path = profile.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")  # a profile cut short would be in the way of all the others
        partial.write_text(to_toml(profile), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ProfileError(f"The profile {str(path)!r} cannot be written: {error.strerror or error}.") from error
    return path


def read_profile(path: Path) -> Profile:
    """Read and check one profile.

    Raises:
        ProfileError: the file cannot be read, or a key or a value in it is wrong.
    """
    try:
        return _checked(path, read_toml(path, LARGEST))
    except (ValueError, SettingError) as error:
        reason = str(error)
        raise ProfileError(f"Profile {str(path)!r} cannot be used: {reason.rstrip('.')}.") from error


def _checked(path: Path, data: Mapping[str, Any]) -> Profile:
    _only(data, ("version", "situation", "measured", "choices"), "it")
    if data.get("version") != VERSION:
        raise SettingError(f"its version is {shown(data.get('version'))}, and this h2gen reads {VERSION}")
    situation = _record(Situation, _table(data, "situation"), "situation")
    for name in ("steps", "width", "height"):
        if getattr(situation, name) < 1:
            raise SettingError(f"situation.{name} is {getattr(situation, name)}; it must be 1 or more")
    if situation.guidance_mode not in ("true", "plain"):
        raise SettingError(f"situation.guidance_mode is {shown(situation.guidance_mode)}; it can be true or plain")
    choices = data.get("choices")
    if not isinstance(choices, list) or not 1 <= len(choices) <= MOST_CHOICES:
        raise SettingError(f"it must have choices, from 1 to {MOST_CHOICES}")
    found = tuple(_choice(item, f"choice {place}") for place, item in enumerate(choices, 1))
    return Profile(path, situation, _fastest_first(found), _table(data, "measured"))


def _choice(item: Any, where: str) -> Choice:
    if not isinstance(item, dict):
        raise SettingError(f"{where} is {shown(item)}; it must be a table")
    _only(item, ("label", "steps", "solver", "cache", "figures"), where)
    label, steps, solver = item.get("label"), item.get("steps"), item.get("solver")
    if not isinstance(label, str) or len(label) > 200:
        raise SettingError(f"{where}: label must be a short text")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 10_000:
        raise SettingError(f"{where}: steps is {shown(steps)}; it must be a whole number from 1 on")
    if solver not in SOLVERS:
        raise SettingError(f"{where}: solver is {shown(solver)}; it can be {', '.join(SOLVERS)}")
    cache = _table(item, "cache", where)
    _only(cache, tuple(_CACHE), f"{where}: cache")
    missing = [name for name in ("tau1", "tau2") if name not in cache]
    if missing:
        raise SettingError(f"{where}: cache does not say {' and '.join(missing)}; 0 switches a threshold off")
    try:
        config = CacheConfig(**cache)
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from error
    figures = _record(Figures, _table(item, "figures", where), f"{where}: figures")
    if figures.speedup <= 0 or figures.share < 0:
        raise SettingError(f"{where}: figures are impossible: speedup {figures.speedup}, share {figures.share}")
    return Choice(" ".join(label.split()), steps, str(solver), config, figures)


def _fastest_first(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    return tuple(sorted(choices, key=lambda choice: -choice.figures.speedup))


def _table(data: Mapping[str, Any], key: str, where: str = "it") -> Mapping[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise SettingError(f"{where}: {key} must be a table")
    return value


def _only(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise SettingError(
                f"{where} has an unknown key {shown(key)}{did_you_mean(key, known)} It takes {', '.join(known)}"
            )


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
}


def _record(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """A dataclass of texts, whole numbers and numbers from a table that has exactly its fields."""
    names = [field.name for field in fields(kind)]
    _only(table, names, where)
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in table and field.default is MISSING:
            raise SettingError(f"{where} does not say {field.name}")
        value: Any = table[field.name]
        kinds, name = _KINDS[str(field.type)]
        finite = not isinstance(value, float) or math.isfinite(value)
        if isinstance(value, bool) or not isinstance(value, kinds) or not finite:
            raise SettingError(f"{where}: {field.name} is {shown(value)}; it must be {name}")
        values[field.name] = kinds[-1](value)
    return kind(**values)
