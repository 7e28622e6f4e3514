"""Finding the profile for a model, steps and size, or the nearest one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from h2gen.errors import ProfileError
from h2gen.settings.profiles.files import list_profiles
from h2gen.settings.profiles.profile import Profile, ProfileKey


def find_profile(
    wanted: ProfileKey,
    content_hash: Callable[[], str],
    command: str,
    nearest: bool = False,
    or_else: str = "use the nearest one: --nearest",
) -> tuple[Profile, list[str]]:
    """The profile for a key, and notices about it for the user.

    Args:
        wanted: the key; its ``content_hash`` is ignored.
        content_hash: computes the checkpoint's; called only if everything else fits.
        command: the command that makes a profile for it.
        nearest: use the nearest profile if none fits, with a notice of how it differs.
        or_else: what else the user can do if there is one of the model.

    Raises:
        ProfileError: there is none; the message says how to make one, and which files cannot be used.
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
        differences = _differences(best.key, wanted, real) or "other pictures"
        notices.append(f"There is no profile for {wanted}; using the nearest, made for {differences}.")
        return replace(best.fitted(wanted.steps), measured_for=best.key), notices
    known = next((p for p in alike if p.key.model == wanted.model), None)
    reason = f"There is no profile for {wanted}"
    if known is not None:
        reason = f"The profile for {wanted} is for other weights"
    of_model = any(profile.key.model == wanted.model for profile in profiles)
    other = f" Or {or_else}." if of_model else ""
    raise ProfileError(" ".join([f"{reason}. Make one: {command} ({_HOW_LONG}).{other}", *notices]))


PICTURES = 500
"""The time that ``h2gen tune`` takes by default, in uncached pictures; estimated from the blocks that it ran at 20
steps."""
_HOW_LONG = f"it takes about as long as {PICTURES} pictures, and can be stopped and continued"


def _nameless(key: ProfileKey) -> ProfileKey:
    return replace(key, model="", content_hash="")


def _distance(have: ProfileKey, want: ProfileKey, real: str) -> tuple[float, ...]:
    area = abs(math.log(have.width * have.height / (want.width * want.height)))
    return (
        float(have.content_hash != real),
        float(have.model != want.model),
        float(have.guidance_mode != want.guidance_mode),
        abs(math.log(have.steps / want.steps)) + area,
    )


def mismatch(have: ProfileKey, want: ProfileKey, real: str) -> list[str]:
    """A notice of how a profile that the user named differs, if it does."""
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
