"""The profile that fits a model, steps and size, or the nearest to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from h2gen.errors import ProfileError
from h2gen.settings.profiles.files import list_profiles
from h2gen.settings.profiles.profile import Profile, ProfileKey


def find_profile(
    wanted: ProfileKey, content_hash: Callable[[], str], command: str, nearest: bool = False
) -> tuple[Profile, list[str]]:
    """The profile of a situation, and what the user should know of it.

    Args:
        wanted: the situation; its ``content_hash`` is not looked at.
        content_hash: reads the checkpoint; asked only where a profile would fit otherwise.
        command: what would make a profile for it.
        nearest: take the nearest where none fits, and say how it differs.

    Raises:
        ProfileError: there is none; the message says how to make one, and which file is none that can be used.
    """
    notices: list[str] = []
    profiles = list(list_profiles(notices))
    alike = [profile for profile in profiles if _nameless(profile.key) == _nameless(wanted)]
    real = content_hash() if alike or (nearest and profiles) else ""
    for profile in alike:
        if profile.key.content_hash == real:
            return profile, notices
    if nearest and profiles:
        best = min(profiles, key=lambda profile: _distance(profile.key, wanted, real))
        differences = _differences(best.key, wanted, real) or "another situation"
        notices.append(f"No profile is for {wanted}; using the nearest, made for {differences}.")
        return best.fitted(wanted.steps), notices
    known = next((p for p in alike if p.key.model == wanted.model), None)
    reason = f"There is no profile for {wanted}"
    if known is not None:
        reason = f"The profile for {wanted} is of other weights"
    other = " Or take the nearest: --nearest." if profiles else ""
    raise ProfileError(" ".join([f"{reason}. Make one: {command} ({_HOW_LONG}).{other}", *notices]))


PICTURES = 500
"""About how many uncached pictures' time ``h2gen tune`` takes with its own settings, by the blocks that it ran at 20
steps."""
_HOW_LONG = f"it takes the time of about {PICTURES} pictures, and goes on where it was stopped"


def _nameless(situation: ProfileKey) -> ProfileKey:
    return replace(situation, model="", content_hash="")


def _distance(have: ProfileKey, want: ProfileKey, real: str) -> tuple[float, ...]:
    area = abs(math.log(have.width * have.height / (want.width * want.height)))
    return (
        float(have.content_hash != real),
        float(have.model != want.model),
        float(have.guidance_mode != want.guidance_mode),
        abs(math.log(have.steps / want.steps)) + area,
    )


def mismatch(have: ProfileKey, want: ProfileKey, real: str) -> list[str]:
    """What the user should know of a profile that they named themselves: how it differs, if it does."""
    differences = _differences(have, want, real)
    return [f"The profile is not for {want}; it was made for {differences}."] if differences else []


def _differences(have: ProfileKey, want: ProfileKey, real: str) -> str:
    found = []
    if have.model != want.model:
        found.append(f"the model {have.model!r}")
    elif have.content_hash != real:
        found.append("other weights")
    if have.steps != want.steps:
        found.append(f"{have.steps} steps")
    if (have.width, have.height) != (want.width, want.height):
        found.append(f"{have.width}x{have.height}")
    if have.guidance_mode != want.guidance_mode:
        found.append("true guidance" if have.guidance_mode == "true" else "no true guidance")
    return ", ".join(found)
