"""Estimates the length of a comparison before the model is loaded: methods, pictures, and time if it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from h2gen.evaluation.methods import TRUTH_STEPS
from h2gen.evaluation.number_format import duration, seconds
from h2gen.evaluation.options import MethodOptions
from h2gen.evaluation.peers import SCORED, Peer
from h2gen.evaluation.repeats import LEAST, MOST
from h2gen.settings.profiles import Profile, ProfileKey, list_profiles
from h2gen.wording import times

_HALF = 0.5
"""Assumed share of the blocks of a cache, and of its rivals at the same cost, before it is counted."""
_TRIES = 6
"""Settings usually tried until another cache costs as much; the maximum is twice as many."""


@dataclass(frozen=True)
class Effort:
    """An estimate.

    Args:
        methods: number of methods compared. More numbers of steps are added if none takes as long as a cached run.
        prompts: number of prompts; each method makes one picture per prompt.
        repeat: timed runs per picture; None if the user gave no number.
        pictures: the smallest and the largest number of timed pictures, of these methods.
        uncached_pictures: how many uncached pictures take as long as everything, untimed work included.
        seconds_uncached: seconds per uncached picture in an earlier measurement; None if there is none.
        measured_in: the profile with that measurement.
        noun: what is made: a picture or a video.
    """

    methods: int
    prompts: int
    repeat: int | None
    pictures: tuple[int, int]
    uncached_pictures: float
    seconds_uncached: float | None
    measured_in: str
    noun: str = "picture"

    @property
    def seconds(self) -> float | None:
        """Estimated seconds in all."""
        return None if self.seconds_uncached is None else self.uncached_pictures * self.seconds_uncached

    def __str__(self) -> str:
        prompts = f" on {self.prompts} prompts" if self.prompts > 1 else ""
        low, high = self.pictures
        often = f"{LEAST} or {MOST} times" if self.repeat is None else times(self.repeat)
        count = f"{low}" if low == high else f"{low} to {high}"
        whole = f"Comparing {self.methods} methods{prompts}, each timed {often}: {count} {self.noun}s"
        if self.seconds is None or self.seconds_uncached is None:
            return f"{whole}. The time left is shown once the first is made."
        known = timing_words(self.seconds_uncached, self.measured_in, self.noun)
        return f"{whole}, about {duration(self.seconds)} {known}."

    def to_json(self) -> dict[str, Any]:
        return {
            "methods": self.methods,
            "pictures": list(self.pictures),
            "uncached_pictures": round(self.uncached_pictures, 1),
            "seconds": self.seconds,
        }


def effort(methods: MethodOptions, prompts: int, key: ProfileKey, loading: Mapping[str, str] | None = None) -> Effort:
    """Estimate the length of a comparison.

    Args:
        methods: what is compared; without budgets and further methods.
        prompts: number of prompts.
        key: of a profile for these pictures; its ``content_hash`` is ignored.
        loading: what the model is loaded with, as ``LoadOptions.loading``.
    """
    caches, counts, peers = len(methods.caches), len(methods.fewer), len(methods.peers)
    beside = caches * (1 + 2 * methods.baselines + peers)  # each number of steps runs with two solvers
    timed = 1 + beside + 2 * counts
    low, high = (times * timed + methods.truth for times in _bounds(methods.repeat))
    once = 1 + _HALF * beside + 2 * sum(methods.fewer) / key.steps
    warm = (2 + 2 * (caches + counts)) / key.steps + _HALF * caches
    search = sum(_search(peer, caches, prompts) for peer in methods.peers)
    truth = methods.truth * TRUTH_STEPS / key.steps
    known = timed_before(key, loading)
    return Effort(
        methods=timed + methods.truth,
        prompts=prompts,
        repeat=methods.repeat,
        pictures=(prompts * low, prompts * high),
        uncached_pictures=warm + search + prompts * (_bounds(methods.repeat)[1] * once + truth),
        seconds_uncached=None if known is None else known[0],
        measured_in="" if known is None else known[1].path.name,
        noun=key.noun,
    )


def timing_words(seconds_uncached: float, profile: str, noun: str) -> str:
    """The measurement that an estimated time is based on; it may come from another machine."""
    return f"if an uncached {noun} takes {seconds(seconds_uncached)}, as in the profile {profile!r}"


def _search(peer: Peer, caches: int, prompts: int) -> float:
    """The time to find another cache's settings, in uncached pictures."""
    if not peer.choices:
        return peer.calibration + _HALF * _TRIES * caches * min(8, prompts)
    tries = 1 + sum(len(values) - 1 for values in peer.choices.values())
    return peer.calibration + SCORED * (1 + _HALF * tries * caches)


def _bounds(repeat: int | None) -> Sequence[int]:
    return (LEAST, MOST) if repeat is None else (repeat, repeat)


def timed_before(key: ProfileKey, loading: Mapping[str, str] | None = None) -> tuple[float, Profile] | None:
    """Seconds per uncached picture, and the profile that records them; None if there is no profile of such pictures.

    Every step takes the same time, so a profile for another number of steps is scaled; the nearest number is taken.

    Args:
        key: its ``content_hash`` is ignored.
        loading: what the model is loaded with, as ``LoadOptions.loading``; other weights take another time.
    """
    known: list[tuple[float, Profile]] = []
    for profile in list_profiles([]):
        alike = _of(profile.key) == _of(key) and profile.loading == (loading or {})
        once = profile.measured.get("seconds_uncached")
        if alike and isinstance(once, (int, float)) and once > 0:
            known.append((once / profile.key.steps * key.steps, profile))
    return min(known, key=lambda found: abs(found[1].key.steps - key.steps), default=None)


def _of(key: ProfileKey) -> tuple[str, int, int, int, str]:
    """What decides how long a step takes."""
    return key.model, key.width, key.height, key.frames, key.guidance_mode
