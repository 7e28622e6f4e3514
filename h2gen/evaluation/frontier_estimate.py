"""Estimates the length of a frontier: its pictures, and how many uncached pictures take as long."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from h2gen.evaluation.baselines import COUNTED
from h2gen.evaluation.builtin_prompts import TUNING
from h2gen.evaluation.effort import timed_before, timing_words
from h2gen.evaluation.fit_budget import MOST as MOST_FITS
from h2gen.evaluation.number_format import duration, seconds
from h2gen.evaluation.peers import SCORED, Peer
from h2gen.evaluation.peers.equal_cost import MOST, TOLERANCE
from h2gen.evaluation.rivals import steps_within
from h2gen.models.choices import TRIED_SOLVERS, evaluations
from h2gen.settings.profiles import ProfileKey
from h2gen.wording import plural

OWN = 3
"""Methods of h2gen's own for each budget, at most: a plan, an adaptive policy, and the two stages."""


@dataclass(frozen=True)
class FrontierEstimate:
    """An upper bound, as if nothing were in the log.

    Args:
        pictures: number of pictures, at most.
        searching: how many of them are made to find the settings of other caches and of the paper's.
        uncached_pictures: how many uncached pictures take about as long.
        prompts: number of prompts measured.
        methods: number of methods measured, at most.
        seconds_uncached: seconds per uncached picture in an earlier measurement; None if there is none.
        measured_in: the profile with that measurement.
        noun: what is made: a picture or a video.
    """

    pictures: int
    searching: int
    uncached_pictures: int
    prompts: int
    methods: int
    seconds_uncached: float | None = None
    measured_in: str = ""
    noun: str = "picture"

    @property
    def seconds(self) -> float | None:
        """Estimated seconds in all, at most."""
        return None if self.seconds_uncached is None else self.uncached_pictures * self.seconds_uncached

    def expecting(self, key: ProfileKey, loading: Mapping[str, str] | None = None) -> FrontierEstimate:
        """The same with the time of an uncached picture, if a profile of such pictures records it."""
        known = timed_before(key, loading)
        named = replace(self, noun=key.noun)
        return named if known is None else replace(named, seconds_uncached=known[0], measured_in=known[1].path.name)

    def __str__(self) -> str:
        search = f", {self.searching} of them to find the settings of other caches" if self.searching else ""
        of = f"{self.methods} methods, {plural(self.prompts, 'prompt')}"
        whole = (
            f"At most {self.pictures} {self.noun}s ({of}){search}; they take about as long as {self.uncached_pictures} "
        )
        if self.seconds is None or self.seconds_uncached is None:
            return f"{whole}uncached ones."
        known = timing_words(self.seconds_uncached, self.measured_in, self.noun)
        return f"{whole}uncached ones: {duration(self.seconds)} {known}."

    def timed(self, once: float) -> str:
        """The estimate in seconds, given those of one uncached picture."""
        return (
            f"An uncached {self.noun} takes {seconds(once)}: about {duration(self.uncached_pictures * once)} in all at "
            f"most, less for {self.noun}s that are already measured."
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def estimate(
    groups: Collection[str], budgets: Sequence[float], peers: Sequence[Peer], prompts: int, steps: int
) -> FrontierEstimate:
    """Estimate the length of a frontier, at most.

    Args:
        groups: what is measured, as in ``GROUPS``.
        budgets: shares of the blocks.
        peers: other caches.
        prompts: number of prompts.
        steps: of the uncached picture.
    """
    shares = [1.0]
    if "own" in groups:
        shares += [budget for budget in budgets for _ in range(OWN)]
    if "steps" in groups:
        counts = {
            (solver, count)
            for solver in TRIED_SOLVERS
            for budget in budgets
            for count in steps_within(budget, steps, solver, TOLERANCE)
        }
        shares += [evaluations(count, solver) / steps for solver, count in counts]
    counted = min(COUNTED, prompts)
    uncached = searching = 0  # pictures made to search: for calibration, uncached, and per budget
    if "paper" in groups:
        shares += budgets
        searching += MOST_FITS * counted
    for peer in peers:
        shares += budgets
        uncached += len(TUNING) * peer.calibrates
        searching += SCORED * (len(peer.choices) > 0) + SCORED * sum(len(each) - 1 for each in peer.choices.values())
        searching += 0 if peer.choices else (MOST + 1) * counted
    uncached += SCORED if any(peer.choices for peer in peers) else 0
    # The settings that a search tries lie on both sides of the budget, so on average they cost as much.
    longest = uncached + searching * sum(budgets) + prompts * sum(shares)
    searched = uncached + searching * len(budgets)
    return FrontierEstimate(
        pictures=prompts * len(shares) + searched,
        searching=searched,
        uncached_pictures=round(longest),
        prompts=prompts,
        methods=len(shares),
    )
