"""What tuning would take: pictures, time if it is known how long one takes, and where the profile would go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from h2gen.evaluation.effort import timed_before
from h2gen.evaluation.number_format import duration, seconds
from h2gen.evaluation.tune.options import TuneOptions
from h2gen.settings.profiles import ProfileKey, file_name, user_folder


@dataclass(frozen=True)
class TuneEstimate:
    """An upper bound.

    Args:
        pictures: that are made, at most.
        uncached_pictures: that run at least as many blocks as all of them.
        seconds_uncached: of one uncached picture, when it was last measured; None if that is not known.
        measured_in: the profile that records that.
        profile: the file to be written; * stands for part of the model's hash, unless the user named the file.
        noun: what is made: a picture or a video.
    """

    pictures: int
    uncached_pictures: int
    seconds_uncached: float | None
    measured_in: str
    profile: Path
    noun: str = "picture"

    @property
    def seconds(self) -> float | None:
        """Of all pictures."""
        return None if self.seconds_uncached is None else self.uncached_pictures * self.seconds_uncached

    def __str__(self) -> str:
        whole = (
            f"At most {self.pictures} {self.noun}s, which take about as long as {self.uncached_pictures} uncached ones"
        )
        if self.seconds is not None and self.seconds_uncached is not None:
            each = seconds(self.seconds_uncached)
            whole += f": {duration(self.seconds)} at {each} each, as measured for {self.measured_in}"
        return f"{whole}. The profile goes to {str(self.profile)!r}."

    def to_json(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "uncached_pictures": self.uncached_pictures,
            "seconds": self.seconds,
            "profile": str(self.profile),
        }


def estimate(options: TuneOptions, key: ProfileKey, loading: Mapping[str, str] | None = None) -> TuneEstimate:
    """What tuning with these options would take, at most.

    Args:
        options: how much is tried.
        key: what the profile is for; its ``content_hash`` is ignored.
        loading: what the model is loaded with, as ``LoadOptions.loading``.
    """
    known = timed_before(key, loading)
    folder = user_folder()
    named = replace(key, content_hash="*")
    return TuneEstimate(
        pictures=options.pictures,
        uncached_pictures=options.uncached_pictures,
        seconds_uncached=None if known is None else known[0],
        measured_in="" if known is None else f"the profile {known[1].path.name!r}",
        profile=options.profile or folder / file_name(named, loading),
        noun=key.noun,
    )
