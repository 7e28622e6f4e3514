"""What a frontier would take: pictures, and how many uncached pictures take as long."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from h2gen.evaluation.baselines import COUNTED
from h2gen.evaluation.builtin_prompts import TUNING
from h2gen.evaluation.fit_budget import MOST as MOST_FITS
from h2gen.evaluation.number_format import duration, seconds
from h2gen.evaluation.peers import SCORED, Peer
from h2gen.evaluation.peers.equal_cost import MOST, TOLERANCE
from h2gen.evaluation.rivals import steps_within
from h2gen.models.choices import SOLVERS, evaluations

OWN = 3
"""Methods of h2gen's own for each budget, at most: a plan, an adaptive policy, and the two stages."""


@dataclass(frozen=True)
class FrontierEstimate:
    """An upper bound, as if nothing were in the log.

    Args:
        pictures: that are made, at most.
        searching: those of them that serve to find the settings of other caches and of the paper's.
        uncached_pictures: that take about as long as all of them.
        prompts: measured.
        methods: measured, at most.
    """

    pictures: int
    searching: int
    uncached_pictures: int
    prompts: int
    methods: int

    def __str__(self) -> str:
        search = f", {self.searching} of them to find settings of other caches" if self.searching else ""
        return (
            f"At most {self.pictures} pictures ({self.methods} methods, {self.prompts} prompts){search}; they take "
            f"about as long as {self.uncached_pictures} uncached ones."
        )

    def timed(self, once: float) -> str:
        """How long it takes, now that the seconds of an uncached picture are known."""
        return (
            f"An uncached picture takes {seconds(once)}, so everything takes about "
            f"{duration(self.uncached_pictures * once)} at most, less what is in the log."
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    groups: Collection[str], budgets: Sequence[float], peers: Sequence[Peer], prompts: int, steps: int
) -> FrontierEstimate:
    """What a frontier would take, at most.

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
            for solver in SOLVERS
            for budget in budgets
            for count in steps_within(budget, steps, solver, TOLERANCE)
        }
        shares += [evaluations(count, solver) / steps for solver, count in counts]
    counted = min(COUNTED, prompts)
    uncached = searching = 0  # pictures of the searches: of whole calibrations, and for each budget
    if "paper" in groups:
        shares += budgets
        searching += MOST_FITS * counted
    for peer in peers:
        shares += budgets
        uncached += len(TUNING) * peer.calibrates
        searching += SCORED * (len(peer.choices) > 0) + SCORED * sum(len(each) - 1 for each in peer.choices.values())
        searching += 0 if peer.choices else (MOST + 1) * counted
    uncached += SCORED if any(peer.choices for peer in peers) else 0
    # A search closes in on the budget, from both sides.
    longest = uncached + searching * sum(budgets) + prompts * sum(shares)
    searched = uncached + searching * len(budgets)
    return FrontierEstimate(
        pictures=prompts * len(shares) + searched,
        searching=searched,
        uncached_pictures=round(longest),
        prompts=prompts,
        methods=len(shares),
    )
