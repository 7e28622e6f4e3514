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
from h2gen.settings.profiles.profile import Choice, Figures, Profile, ProfileKey
from h2gen.settings.values import LARGEST_SIDE, MOST_STEPS, check_length
from h2gen.toml import read_toml
from h2gen.wording import did_you_mean, shown

VERSION = 1
LARGEST = 256 * 1024
"""Bytes of a profile that is read."""
MOST_CHOICES = 200
_SHORT = 300
"""Characters of a text."""

_SHIPPED = Path(__file__).resolve().parent / "shipped"
_CACHE = {field.name: field.default for field in fields(CacheConfig)}


def user_folder() -> Path:
    """Where the user's own profiles lie."""
    return Path(platformdirs.user_data_dir("h2gen", appauthor=False)) / "profiles"


def file_name(situation: ProfileKey) -> str:
    """What the file of a situation's profile is called; the model's hash keeps namesakes apart."""
    model = re.sub(r"[^A-Za-z0-9]+", "-", situation.model).strip("-")[:60] or "model"
    guided = "-guided" if situation.guidance_mode == "true" else ""
    size = f"{situation.width}x{situation.height}"
    return f"{model}-{situation.steps}-{size}{guided}-{situation.content_hash[:8]}.toml"


def list_profiles(broken: list[str] | None = None) -> Iterator[Profile]:
    """The user's own profiles and the shipped ones; one of the user's hides a shipped one of the same situation.

    Args:
        broken: gets a line of each file that is not valid, which then is in nobody's way.

    Raises:
        ProfileError: one of them is not valid, and ``broken`` is None.
    """
    seen = set()
    for folder in (user_folder(), _SHIPPED):
        for path in sorted(folder.glob("*.toml")):
            try:
                profile = read_profile(path)
            except ProfileError as error:
                if broken is None:
                    raise
                broken.append(str(error))
                continue
            if profile.key not in seen:
                seen.add(profile.key)
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
        "situation": asdict(profile.key),
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
    situation = _record(ProfileKey, _table(data, "situation"), "situation")
    for name, most in (("steps", MOST_STEPS), ("width", LARGEST_SIDE), ("height", LARGEST_SIDE)):
        if not 1 <= getattr(situation, name) <= most:
            raise SettingError(f"situation.{name} is {getattr(situation, name)}; it must be from 1 to {most}")
    if situation.guidance_mode not in ("true", "plain"):
        raise SettingError(f"situation.guidance_mode is {shown(situation.guidance_mode)}; it can be true or plain")
    choices = data.get("choices")
    if not isinstance(choices, list) or not 1 <= len(choices) <= MOST_CHOICES:
        raise SettingError(f"it must have choices, from 1 to {MOST_CHOICES}")
    found = tuple(_choice(item, situation.steps, f"choice {place}") for place, item in enumerate(choices, 1))
    return Profile(path, situation, _fastest_first(found), _table(data, "measured"))


def _choice(item: Any, most: int, where: str) -> Choice:
    if not isinstance(item, dict):
        raise SettingError(f"{where} is {shown(item)}; it must be a table")
    _only(item, ("label", "steps", "solver", "cache", "figures"), where)
    label, steps, solver = item.get("label"), item.get("steps"), item.get("solver")
    if not isinstance(label, str) or len(label) > _SHORT:
        raise SettingError(f"{where}: label must be a short text")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise SettingError(f"{where}: steps is {shown(steps)}; it must be a whole number from 1 to {most}")
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise SettingError(f"{where}: solver is {shown(solver)}; it can be {', '.join(SOLVERS)}")
    cache = _table(item, "cache", where)
    _only(cache, tuple(_CACHE), f"{where}: cache")
    missing = [name for name in ("tau1", "tau2") if name not in cache]
    if missing:
        raise SettingError(f"{where}: cache does not say {' and '.join(missing)}; 0 switches a threshold off")
    try:
        config = CacheConfig(**cache)
        check_length(config.plan, steps, solver)
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from error
    figures = _record(Figures, _table(item, "figures", where), f"{where}: figures")
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(figures, name) <= high:
            raise SettingError(f"{where}: figures: {name} is {getattr(figures, name):g}, which is impossible")
    return Choice(" ".join(label.split()), steps, solver, config, figures)


_RANGES = {
    "share": (0, 1),
    "seconds": (0, 1e9),
    "speedup": (1e-3, 1e6),
    **{name: (-1, 1) for name in ("ssim_mean", "ssim_worst")},
    **{name: (-1000, 1000) for name in ("psnr_mean", "psnr_worst")},
}


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
        if isinstance(value, str) and len(value) > _SHORT:
            raise SettingError(f"{where}: {field.name} is {shown(value)}; it must be a short text")
        values[field.name] = kinds[-1](value)
    return kind(**values)
