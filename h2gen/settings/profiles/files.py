"""Profiles on the disk: TOML files that ship with h2gen or are in the user's data folder; all are checked when read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from h2gen import files
from h2gen.cache.config import CacheConfig
from h2gen.checks import Rule
from h2gen.errors import ProfileError, SettingError
from h2gen.settings.profiles.profile import Choice, Figures, Profile, ProfileKey, loading_words
from h2gen.settings.table import BY_NAME
from h2gen.settings.values import check_length
from h2gen.settings.video_rows import MOST_FRAMES
from h2gen.toml import read_toml
from h2gen.wording import did_you_mean, shown

VERSION = 1
LARGEST = 256 * 1024
"""Largest profile, in bytes."""
MOST_CHOICES = 200

_SHIPPED = Path(__file__).resolve().parent / "shipped"
_CACHE = {field.name: field.default for field in fields(CacheConfig)}


def user_folder() -> Path:
    """The folder of the user's own profiles."""
    return files.user_folder("data") / "profiles"


def file_name(key: ProfileKey, loading: Mapping[str, str] | None = None) -> str:
    """The name of a profile's file; the model's hash distinguishes models of the same name.

    Args:
        key: of the profile.
        loading: what it is measured with, as ``LoadOptions.loading``.
    """
    model = re.sub(r"[^A-Za-z0-9]+", "-", key.model).strip("-")[:60] or "model"
    guided = "-guided" if key.guidance_mode == "true" else ""
    size = f"{key.width}x{key.height}" + (f"x{key.frames}" if key.frames else "")
    loaded = "".join(f"-{word.lstrip('-')}" for word in loading_words(loading or {}))
    return f"{model}-{key.steps}-{size}{guided}{loaded}-{key.content_hash[:8]}.toml"


def list_profiles(broken: list[str] | None = None) -> Iterator[Profile]:
    """The user's own profiles and the shipped ones; one of the user's hides a shipped one that is for the same.

    Args:
        broken: gets one line per file that is not valid, and such files are skipped.

    Raises:
        ProfileError: one of them is not valid, and ``broken`` is None.
    """
    seen = set()
    for path in (*files.user_files("data", "profiles"), *sorted(_SHIPPED.glob("*.toml"))):
        try:
            profile = read_profile(path)
        except ProfileError as error:
            if broken is None:
                raise
            broken.append(str(error))
            continue
        identity = profile.key, *profile.loading.items()
        if identity not in seen:
            seen.add(identity)
            yield profile


def ships(profile: Profile) -> bool:
    """Whether a profile comes with h2gen."""
    return profile.path.parent == _SHIPPED


def to_toml(profile: Profile) -> str:
    """The profile as the text of its file; settings of a cache at their defaults are left out."""
    import tomli_w

    choices = []
    for choice in profile.choices:
        cache = {name: value for name, value in asdict(choice.cache).items() if value != _CACHE[name]}
        # Thresholds are always written: the default is the paper's, and 0 is off.
        cache |= {"tau1": choice.cache.tau1, "tau2": choice.cache.tau2}
        figures = {name: round(float(value), 4) for name, value in asdict(choice.figures).items()}
        choices.append(
            {"label": choice.label, "steps": choice.steps, "solver": choice.solver, "cache": cache, "figures": figures}
        )
    whole = {
        "version": VERSION,
        "situation": {name: getattr(profile.key, name) for name in (*_KEY_RULES, *_of_videos(profile.key.frames))},
        "measured": dict(profile.measured),
        "choices": choices,
    }
    return tomli_w.dumps(whole)


def write_profile(profile: Profile) -> Path:
    """Write a user profile to its path, replacing an existing one.

    Raises:
        ProfileError: the file cannot be written.
    """
    path = profile.path
    try:
        files.write_whole(path, to_toml(profile))
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
    situation = _table(data, "situation")
    key = ProfileKey(**_values({**_KEY_RULES, **_of_videos("frames" in situation)}, situation, "situation"))
    choices = data.get("choices")
    if not isinstance(choices, list) or not 1 <= len(choices) <= MOST_CHOICES:
        raise SettingError(f"it must have choices, from 1 to {MOST_CHOICES}")
    found = tuple(_choice(item, key.steps, f"choice {number}") for number, item in enumerate(choices, 1))
    return Profile(path, key, _fastest_first(found), _table(data, "measured"))


def _choice(item: Any, most: int, where: str) -> Choice:
    Rule(dict).check_kind(where, item)
    _only(item, ("label", "steps", "solver", "cache", "figures"), where)
    rules = {"label": _TEXT, "steps": Rule(int, 1, most), "solver": BY_NAME["solver"].rule}
    values = _values(rules, {name: value for name, value in item.items() if name not in ("cache", "figures")}, where)
    cache = _table(item, "cache", where)
    _only(cache, tuple(_CACHE), f"{where}: cache")
    missing = [name for name in ("tau1", "tau2") if name not in cache]
    if missing:
        raise SettingError(f"{where}: cache lacks {' and '.join(missing)}; 0 switches a threshold off")
    try:
        config = CacheConfig(**cache)
        check_length(config.plan, values["steps"], values["solver"])
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from error
    figures = Figures(**_values(_FIGURE_RULES, _table(item, "figures", where), f"{where}: figures"))
    return Choice(" ".join(values["label"].split()), values["steps"], values["solver"], config, figures)


_TEXT = Rule(str, longest=300)
_KEY_RULES = {
    "model": _TEXT,
    "content_hash": _TEXT,
    **{name: BY_NAME[name].rule for name in ("steps", "width", "height")},
    "guidance_mode": Rule(str, choices=("true", "plain")),
}


def _of_videos(video: Any) -> Mapping[str, Rule]:
    """What a key has besides, if it is for videos."""
    return {"frames": Rule(int, 1, MOST_FRAMES)} if video else {}


_FIGURE_RULES = {
    "share": Rule(float, 0, 1),
    "seconds": Rule(float, 0, 10**9),
    "speedup": Rule(float, 0.001, 10**6),
    **{name: Rule(float, -1, 1) for name in ("ssim_mean", "ssim_worst")},
    **{name: Rule(float, -1000, 1000) for name in ("psnr_mean", "psnr_worst")},
}


def _fastest_first(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    return tuple(sorted(choices, key=lambda choice: -choice.figures.speedup))


def _table(data: Mapping[str, Any], key: str, where: str = "it") -> Mapping[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise SettingError(f"{where}: {key} must be a table")
    return value


def _only(data: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise SettingError(
                f"{where} has an unknown key {shown(key)}{did_you_mean(key, known)} Known keys: {', '.join(known)}"
            )


def _values(rules: Mapping[str, Rule], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a table that has exactly these keys."""
    _only(table, rules, where)
    missing = [name for name in rules if name not in table]
    if missing:
        raise SettingError(f"{where} lacks {missing[0]}")
    return {name: rule.check(f"{where}: {name}", table[name]) for name, rule in rules.items()}
