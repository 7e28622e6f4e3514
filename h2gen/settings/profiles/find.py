"""Finding the profile for a model, steps and size, or the nearest one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from h2gen.errors import ProfileError
from h2gen.models.load_options import CHANGING
from h2gen.settings.profiles.files import list_profiles, ships
from h2gen.settings.profiles.profile import Profile, ProfileKey, loading_words
from h2gen.settings.table import BY_NAME
from h2gen.wording import listed, printable

PICTURES = 1144
"""About the time that ``h2gen tune`` takes by default, in uncached pictures, as its own estimate says."""
NEAREST = "use the nearest one: --nearest"


def how_long(noun: str) -> str:
    """How long a profile takes to measure, for pictures or for videos."""
    return f"it takes about as long as {PICTURES} uncached {noun}s, and can be stopped and continued"


class ProfileSearch:
    """The profiles for a key: the one that fits, or the nearest one.

    Args:
        wanted: the key; its ``content_hash`` is ignored.
        content_hash: computes the checkpoint's; called only if everything else fits.
        loading: what the model is loaded with, as ``LoadOptions.loading``.
    """

    def __init__(
        self, wanted: ProfileKey, content_hash: Callable[[], str], loading: Mapping[str, str] | None = None
    ) -> None:
        self._wanted, self._content_hash, self._loading = wanted, content_hash, dict(loading or {})
        self._broken: list[str] = []
        self._profiles = list(list_profiles(self._broken))
        self._near = [each for each in self._profiles if each.key.noun == wanted.noun]
        self._alike = [profile for profile in self._profiles if _nameless(profile.key) == _nameless(wanted)]
        self.notices = list(self._broken)
        """Lines for the user about files that cannot be used, and about the profile once it was looked up."""

    @property
    def of_model(self) -> bool:
        """Whether there is a profile of the model, for any steps and size."""
        return any(profile.key.model == self._wanted.model for profile in self._near)

    def exact(self) -> Profile | None:
        """The profile that fits; None if there is none. One for other ways of loading is used if there is
        no better."""
        real = self._content_hash() if self._alike else ""
        fitting = [profile for profile in self._alike if profile.key.content_hash == real]
        found = min(fitting, key=self._loaded_otherwise, default=None)
        if found is not None:
            self.notices += loaded_otherwise(found, self._loading)
        return found

    def nearest(self, same_weights: bool = False) -> Profile | None:
        """The nearest profile; None if there is none at all, or none of the same weights."""
        near = self._near
        if same_weights:  # those that ship are of the bundled model: for another, nothing is downloaded to be hashed
            near = [each for each in near if each.key.model == self._wanted.model or not ships(each)]
        real = self._content_hash() if near else ""
        near = [profile for profile in near if not same_weights or profile.key.content_hash == real]
        if not near:
            return None
        best = min(near, key=lambda each: (*_distance(each.key, self._wanted, real), *self._loaded_otherwise(each)))
        differences = _differences(best.key, self._wanted, real) or f"other {self._wanted.noun}s"
        self.notices.append(f"There is no profile for {self._wanted}; using the nearest, made for {differences}.")
        self.notices += loaded_otherwise(best, self._loading)
        return replace(best.fitted(self._wanted.steps), measured_for=best.key)

    def _loaded_otherwise(self, profile: Profile) -> tuple[int, int]:
        """How many options a profile was measured with that differ: of the weights, and in all."""
        differ = {name for name, _ in profile.loading.items() ^ self._loading.items()}
        return len(differ.intersection(CHANGING)), len(differ)

    def missing(self, command: str, or_else: str) -> ProfileError:
        """The error for a key without a profile; arguments as in ``find_profile``."""
        if self._wanted.shift != "own":
            raise ProfileError(
                f"Profiles are measured with the model's own shift, and --shift is {self._wanted.shift}; leave out "
                f"--shift, or {or_else}."
            )
        known = any(profile.key.model == self._wanted.model for profile in self._alike)
        reason = f"There is no profile for {self._wanted}"
        if known:
            reason = f"The profile for {self._wanted} is for other weights"
        other = f" Or {or_else}." if self.of_model else ""
        return ProfileError(
            " ".join([f"{reason}. Make one: {command} ({how_long(self._wanted.noun)}).{other}", *self._broken])
        )


def find_profile(
    wanted: ProfileKey,
    content_hash: Callable[[], str],
    command: str,
    nearest: bool = False,
    or_else: str = NEAREST,
    loading: Mapping[str, str] | None = None,
) -> tuple[Profile, list[str]]:
    """The profile for a key, and notices about it for the user.

    Args:
        wanted: the key; its ``content_hash`` is ignored.
        content_hash: computes the checkpoint's; called only if everything else fits.
        command: the command that makes a profile for it.
        nearest: use the nearest profile if none fits, with a notice of how it differs.
        or_else: what else the user can do if there is one of the model.
        loading: what the model is loaded with, as ``LoadOptions.loading``.

    Raises:
        ProfileError: there is none; the message says how to make one, and which files cannot be used.
    """
    search = ProfileSearch(wanted, content_hash, loading)
    found = search.exact() or (search.nearest() if nearest else None)
    if found is None:
        raise search.missing(command, or_else)
    return found, search.notices


def _nameless(key: ProfileKey) -> ProfileKey:
    return replace(key, model="", content_hash="")


def _distance(have: ProfileKey, want: ProfileKey, real: str) -> tuple[float, ...]:
    area = abs(math.log(have.width * have.height / (want.width * want.height)))
    return (
        float(have.content_hash != real),
        float(have.model != want.model),
        float(have.guidance_mode != want.guidance_mode),
        abs(math.log(have.steps / want.steps)) + area + abs(math.log(max(1, have.frames) / max(1, want.frames))),
    )


def mismatch(have: ProfileKey, want: ProfileKey, real: str) -> list[str]:
    """A notice of how a profile that the user named differs, if it does."""
    differences = _differences(have, want, real)
    return [f"The profile is not for {want}; it was made for {differences}."] if differences else []


def loaded_otherwise(profile: Profile, loading: Mapping[str, str]) -> list[str]:
    """A notice if a profile was measured with other options than those in ``loading``."""
    had = profile.loading
    if had == loading:
        return []
    without = "without " + listed([BY_NAME[name].option for name in had or loading], "or")
    here = without if not loading else f"with {printable(' '.join(loading_words(loading)))}"
    was = without if not had else f"with {printable(' '.join(loading_words(had)))}"
    return [f"The profile was measured {was}; its figures are only a rough guide {here}."]


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
    if have.frames != want.frames:
        found.append(f"{have.frames} frames" if have.frames else "pictures")
    if have.guidance_mode != want.guidance_mode:
        found.append("true guidance" if have.guidance_mode == "true" else "no true guidance")
    if have.shift != want.shift:
        found.append("the model's own shift")
    return ", ".join(found)
