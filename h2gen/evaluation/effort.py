"""What a comparison will take, told before the model is loaded: methods, pictures, and time if one was timed before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from h2gen.evaluation.methods import TRUTH_STEPS
from h2gen.evaluation.number_format import duration, seconds
from h2gen.evaluation.options import MethodOptions
from h2gen.evaluation.peers import SCORED, Peer
from h2gen.evaluation.repeats import LEAST, MOST
from h2gen.settings.profiles import Profile, ProfileKey, list_profiles

_HALF = 0.5
"""Share of the blocks that a cache, and its rivals of the same cost, are taken to run until they are counted."""
_TRIES = 6
"""Settings usually tried until another cache costs as much; at most twice as many."""


@dataclass(frozen=True)
class Effort:
    """An estimate.

    Args:
        methods: that are compared, at most.
        prompts: that each makes a picture of.
        repeat: timed runs that were asked for; None if nothing was.
        pictures: the fewest and the most timed ones.
        uncached_pictures: that take as long as the most and all that is not timed.
        seconds_uncached: of one uncached picture, when it was last measured; None if that is not known.
        measured_in: the profile that records that.
    """

    methods: int
    prompts: int
    repeat: int | None
    pictures: tuple[int, int]
    uncached_pictures: float
    seconds_uncached: float | None
    measured_in: str

    @property
    def seconds(self) -> float | None:
        """Of all pictures, about."""
        return None if self.seconds_uncached is None else self.uncached_pictures * self.seconds_uncached

    def __str__(self) -> str:
        prompts = f" on {self.prompts} prompts" if self.prompts > 1 else ""
        low, high = self.pictures
        often = {None: f"{LEAST} or {MOST} times", 1: "once", 2: "twice"}.get(self.repeat, f"{self.repeat} times")
        count = f"{low}" if low == high else f"{low} to {high}"
        whole = f"Comparing {self.methods} methods{prompts}, each timed {often}: {count} pictures"
        if self.seconds is None or self.seconds_uncached is None:
            return f"{whole}. The first ones show how long that takes."
        each = f"{seconds(self.seconds_uncached)} per uncached picture"
        return f"{whole}, about {duration(self.seconds)} ({each} in the profile {self.measured_in!r})."

    def to_json(self) -> dict[str, Any]:
        return {
            "methods": self.methods,
            "pictures": list(self.pictures),
            "uncached_pictures": round(self.uncached_pictures, 1),
            "seconds": self.seconds,
        }


def effort(methods: MethodOptions, prompts: int, key: ProfileKey) -> Effort:
    """What a comparison will take.

    Args:
        methods: what is compared; without budgets and further methods.
        prompts: that each method makes a picture of.
        key: of a profile for these pictures; its ``content_hash`` is ignored.
    """
    caches, counts, peers = len(methods.caches), len(methods.fewer), len(methods.peers)
    beside = caches * (1 + 2 * methods.baselines + peers)  # each number of steps runs with two solvers
    timed = 1 + beside + 2 * counts
    low, high = (times * timed + methods.truth for times in _bounds(methods.repeat))
    once = 1 + _HALF * beside + 2 * sum(methods.fewer) / key.steps
    warm = (2 + 2 * (caches + counts)) / key.steps + _HALF * caches
    search = sum(_search(peer, caches, prompts) for peer in methods.peers)
    truth = methods.truth * TRUTH_STEPS / key.steps
    known = timed_before(key)
    return Effort(
        methods=timed + methods.truth,
        prompts=prompts,
        repeat=methods.repeat,
        pictures=(prompts * low, prompts * high),
        uncached_pictures=warm + search + prompts * (_bounds(methods.repeat)[1] * once + truth),
        seconds_uncached=None if known is None else known[0],
        measured_in="" if known is None else known[1].path.name,
    )


def _search(peer: Peer, caches: int, prompts: int) -> float:
    """How many uncached pictures take as long as finding another cache's settings."""
    if not peer.choices:
        return peer.calibration + _HALF * _TRIES * caches * min(8, prompts)
    tries = 1 + sum(len(values) - 1 for values in peer.choices.values())
    return peer.calibration + SCORED * (1 + _HALF * tries * caches)


def _bounds(repeat: int | None) -> Sequence[int]:
    return (LEAST, MOST) if repeat is None else (repeat, repeat)


def timed_before(key: ProfileKey) -> tuple[float, Profile] | None:
    """Seconds of one uncached picture, and the profile that records them; None if no profile is of such pictures.

    Args:
        key: its ``content_hash`` is ignored. Steps take the same time each; the nearest number of steps is the best
            guide.
    """
    known: list[tuple[float, Profile]] = []
    for profile in list_profiles([]):
        alike = (profile.key.model, profile.key.width, profile.key.height) == (key.model, key.width, key.height)
        once = profile.measured.get("seconds_uncached")
        if alike and profile.key.guidance_mode == key.guidance_mode and isinstance(once, (int, float)) and once > 0:
            known.append((once / profile.key.steps * key.steps, profile))
    return min(known, key=lambda found: abs(found[1].key.steps - key.steps), default=None)
